"""A published checkpoint, opened for reading without an engine and without its run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.checkpoint import _manifest
from launcher.checkpoint._manifest import Manifest
from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.checkpoint._index import Index
    from launcher.contracts import LocalShard

# What is read apart from the tensors.
_TEXTS = (_manifest.CONFIG, _manifest.TRAIN_STATE, _manifest.METADATA)
# Most names of tensors in a message.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint.

    Attributes:
        name: `model.<name>`, `optimizer.<parameter>.<key>`, `rng.rank<N>.<generator>`, ….
        shape: Shape of the full tensor.
        dtype: Its number format, as torch names it.
        shards: Boxes into which it was cut.
        num_bytes: Size of the full tensor, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    shards: int
    num_bytes: int


class SavedCheckpoint:
    """A checkpoint whose manifest, config and index are undamaged.

    Args:
        path: Its folder.

    Raises:
        CheckpointError: It is no checkpoint, or one of these files is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest, fault = _manifest.open_checkpoint(path)
        if manifest is None:
            raise CheckpointError(f"{path} is no checkpoint, or it is damaged: {fault}")
        self.manifest: Manifest = manifest
        self._check({name: manifest.files[name] for name in _TEXTS})

    @property
    def num_bytes(self) -> int:
        """Size of its files, in bytes."""
        return sum(record.size for record in self.manifest.files.values())

    @cached_property
    def config(self) -> str:
        """The text of config.json, as it was when the checkpoint was saved."""
        return (self.path / _manifest.CONFIG).read_text("utf-8")

    @cached_property
    def train_state(self) -> Mapping[str, Any]:
        """Counters, and the state of schedule and observers."""
        values: dict[str, Any] = json.loads((self.path / _manifest.TRAIN_STATE).read_bytes())
        return values

    def verify(self) -> None:
        """Read every file; raise a CheckpointError that names all damaged ones."""
        self._check(self.manifest.files)

    def entries(self) -> list[Entry]:
        """Return all tensors, by name."""
        shards = self._index.boxes()
        return [
            Entry(
                name,
                shape,
                str(dtype).removeprefix("torch."),
                len(shards[name]),
                math.prod(shape) * dtype.itemsize,
            )
            for name, (shape, dtype) in sorted(self._index.describe().items())
        ]

    def describe(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Return shape and dtype of every tensor, by name."""
        return self._index.describe()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors in new CPU memory; one box of a tensor at a time is read."""
        return self._index.read(names)

    def fill(self, live: Mapping[str, Tensor]) -> None:
        """Copy entries into tensors of the same names, shapes and dtypes.

        Raises:
            CheckpointError: An entry is missing or differs; nothing is copied.
        """
        saved = self._index.describe()
        wrong = [
            name
            for name, tensor in live.items()
            if saved.get(name) != (tuple(tensor.shape), tensor.dtype)
        ]
        if wrong:
            raise CheckpointError(
                f"{self.path} is a checkpoint of another model: {len(wrong)} tensors are missing "
                f"or differ in shape or dtype: {', '.join(sorted(wrong)[:_NAMED])}"
            )
        self._index.fill(live)

    def fill_shards(self, live: Mapping[str, LocalShard]) -> None:
        """Copy entries into shards of tensors of these names, shapes and dtypes."""
        self._index.fill(live)

    @cached_property
    def _index(self) -> Index:
        # DCP takes half a second to import, which a list of checkpoints does not need.
        from launcher.checkpoint._index import Index

        files = self.manifest.files.items()
        return Index(self.path, {name: record.size for name, record in files})

    def _check(self, files: Mapping[str, _manifest.FileRecord]) -> None:
        if faults := _manifest.check_files(self.path, files):
            raise CheckpointError("\n  ".join([f"{self.path} is damaged:", *faults]))
