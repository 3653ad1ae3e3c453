"""Rewrite a checkpoint: into another number of parts, or into one file of tensors."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from launcher.checkpoint import _dcp, _manifest
from launcher.checkpoint._draft import Draft
from launcher.checkpoint._file_backed import file_backed
from launcher.checkpoint._saved import SavedCheckpoint
from launcher.checkpoint._storage import Storage
from launcher.contracts import LocalShard, Shard
from launcher.errors import CheckpointError

_RNG = re.compile(r"rng\.rank(\d+)\.")


def write_parts(saved: SavedCheckpoint, folder: Path, parts: int) -> None:
    """Write a checkpoint of the same content whose tensors are cut by rows into parts.

    At most one box of a tensor is in memory.

    Args:
        saved: The checkpoint, verified.
        folder: The new checkpoint, which must not exist.
        parts: Number of files; each can be loaded by any number of ranks.
    """
    storage = Storage()
    with _published(folder) as path:
        draft = Draft(storage, path)
        draft.make(_dcp.STATE)
        states = [_Part(saved, part, parts, path.parent) for part in range(parts)]
        plans = _dcp.plan_parts([state.described() for state in states])
        results = [
            _dcp.write(state, plan, draft) for state, plan in zip(states, plans, strict=True)
        ]
        _dcp.finish(plans[0], results, draft)
        for name in (_manifest.CONFIG, _manifest.TRAIN_STATE):
            draft.write(name, (saved.path / name).read_bytes())
        manifest = saved.manifest.model_copy(update={"files": draft.files})
        draft.write(_manifest.NAME, _manifest.encode(manifest))
        draft.seal()
        if faults := _manifest.verify(path):
            raise CheckpointError(f"{folder} does not read back as written: {'; '.join(faults)}")


def write_safetensors(saved: SavedCheckpoint, file: Path, names: list[str]) -> None:
    """Write tensors of a checkpoint under their names into one safetensors file."""
    from safetensors.torch import save_file

    metadata = {"format": "pt", "step": str(saved.manifest.step), "run_id": saved.manifest.run_id}
    _write_file(saved, file, names, lambda found, path: save_file(dict(found), path, metadata))


def write_torch(saved: SavedCheckpoint, file: Path, names: list[str]) -> None:
    """Write a dict of tensors by name, for `torch.load(file, weights_only=True, mmap=True)`."""
    _write_file(saved, file, names, lambda found, path: torch.save(dict(found), path))


def _write_file(
    saved: SavedCheckpoint,
    file: Path,
    names: list[str],
    write: Callable[[Mapping[str, Tensor], Path], object],
) -> None:
    kinds = saved.describe()
    with _published(file) as path:
        found = {name: file_backed(*kinds[name], path.parent) for name in names}
        saved.fill(found)
        # safetensors writes files that only their owner can read.
        path.touch()
        mode = path.stat().st_mode
        write(found, path)
        path.chmod(mode)
        with path.open("rb") as written:
            os.fsync(written.fileno())


class _Part(Mapping[str, LocalShard]):
    """The tensors of one part; each is read when it is asked for, and lies in a file."""

    def __init__(self, saved: SavedCheckpoint, part: int, parts: int, folder: Path) -> None:
        self._saved = saved
        self._folder = folder
        self._shards: dict[str, Shard] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for name, (shape, dtype) in saved.describe().items():
            shard = _shard(name, shape, part, parts)
            if shard is not None:
                self._shards[name], self._dtypes[name] = shard, dtype

    def described(self) -> dict[str, LocalShard]:
        """Return the tensors on the meta device."""
        return {
            name: LocalShard(torch.empty(self._sizes(name), dtype=dtype, device="meta"), shard)
            for (name, shard), dtype in zip(
                self._shards.items(), self._dtypes.values(), strict=True
            )
        }

    @override
    def __getitem__(self, name: str) -> LocalShard:
        memory = file_backed(self._sizes(name), self._dtypes[name], self._folder)
        local = LocalShard(memory, self._shards[name])
        self._saved.fill_shards({name: local})
        return local

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    @override
    def __len__(self) -> int:
        return len(self._shards)

    def _sizes(self, name: str) -> tuple[int, ...]:
        (box,) = self._shards[name].boxes
        return box.sizes


def _shard(name: str, shape: tuple[int, ...], part: int, parts: int) -> Shard | None:
    """Return what a part holds of a tensor; None for nothing."""
    if not shape or not torch.Size(shape).numel() or (rng := _RNG.match(name)):
        # A rank's generators in one piece, with its other files.
        owner = int(rng.group(1)) % parts if shape and rng else 0
        return Shard.whole(name, shape) if part == owner else None
    rows = -(-shape[0] // parts)
    start, stop = min(part * rows, shape[0]), min((part + 1) * rows, shape[0])
    return Shard.slice_of(name, shape, 0, start, stop) if stop > start else None


@contextmanager
def _published(target: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder, which is renamed to the target on a normal exit."""
    if target.exists():
        raise CheckpointError(f"{target} exists already: give a path that does not")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-convert-", dir=target.parent) as folder:
            path = Path(folder) / target.name
            yield path
            path.rename(target)
        Storage().fsync_folder(target.parent)
    except OSError as error:
        where = error.filename or target
        raise CheckpointError(f"cannot write {target}: {error.strerror} ({where})") from error
