"""Save the state of a run, and load it.

A checkpoint is a folder, published by one rename, with a checksum of every file. Nothing in it is
unpickled except plain tensors and their index:

    checkpoints/step-00001000/
        manifest.json         run, step, fingerprints; size and xxh3-128 of every file below
        config.json           the resolved config
        train_state.json      counters and the schedule's memory
        state/__0_0.distcp    written by rank 0: model.*, optimizer.*, rng.rank0.*
        state/__1_0.distcp    written by rank 1; a tensor that several ranks hold is written once
        state/.metadata       the index of torch.distributed.checkpoint: which part of which
                              tensor is in which file

Any number of ranks, in any sharding, can load it. Next to it may be `step-….corrupt` (damaged, kept
for inspection), and, during a save or after a kill, `.tmp-…` (being written), `.trash-…` (being
deleted) and `.replaced-…` (being replaced).

`training.saving` decides which step is saved, `config.resume_rules` what a resumed run may change.
To add a store: `launcher/checkpoint/<kind>.py` with a CheckpointOption, whose `build` returns a
CheckpointStore, and `conf/checkpoint/<kind>.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.checkpoint._listing import Listed, listed
from launcher.checkpoint._saved import Entry, SavedCheckpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from launcher.contracts import PublishedCheckpoint, StoredConfig
    from launcher.run_dir import RunDir

__all__ = [
    "Entry",
    "Listed",
    "SavedCheckpoint",
    "file_backed",
    "listed",
    "load_tensors",
    "published",
    "stored_config",
]


def published(run_dir: RunDir) -> list[PublishedCheckpoint]:
    """Return a run's checkpoints, ordered by step, without reading tensors."""
    from launcher.checkpoint import _published

    return _published.published(run_dir)


def stored_config(run_dir: RunDir) -> StoredConfig | None:
    """Return the config of a run's newest checkpoint whose manifest and config are undamaged."""
    from launcher.checkpoint import _published

    return _published.stored_config(run_dir)


def load_tensors(path: Path, live: Mapping[str, Tensor]) -> None:
    """Verify a checkpoint and copy entries into tensors.

    Args:
        path: The checkpoint's folder.
        live: Tensors by name of the entry, filled in place.

    Raises:
        CheckpointError: A file is damaged, or an entry is missing or of another shape or dtype.
    """
    from launcher.checkpoint import _published

    _published.load_tensors(path, live)


def file_backed(shape: Sequence[int], dtype: torch.dtype, folder: Path) -> Tensor:
    """Return a tensor whose memory is a nameless file in a folder; see `_file_backed`."""
    from launcher.checkpoint import _file_backed

    return _file_backed.file_backed(shape, dtype, folder)


def write_parts(saved: SavedCheckpoint, folder: Path, parts: int) -> None:
    """Write a verified checkpoint again, cut into another number of parts."""
    from launcher.checkpoint import _convert

    _convert.write_parts(saved, folder, parts)


def write_tensors(saved: SavedCheckpoint, file: Path, names: Sequence[str], to: str) -> None:
    """Write tensors of a verified checkpoint into one file, `to` safetensors or torch."""
    from launcher.checkpoint import _convert

    write = _convert.write_safetensors if to == "safetensors" else _convert.write_torch
    write(saved, file, list(names))
