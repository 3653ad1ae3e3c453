"""Records of several files, and their division into splits."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from typing_extensions import override

from launcher.contracts import DataSplits, Records
from launcher.errors import DataError

Hashes = npt.NDArray[np.uint64]

_log = logging.getLogger("trainctl.data")


class FileTable(ABC):
    """The records of one file, read on access.

    Attributes:
        columns: Names of the columns that every record has.
        hashes: Hash of each record's content. Shape (N,), uint64.
        class_names: Names of the classes of columns that hold numbers of classes.
        skipped: Messages about records that cannot be read.
    """

    columns: Sequence[str]
    hashes: Hashes
    class_names: Mapping[str, Sequence[str]]
    skipped: Sequence[str] = ()

    @abstractmethod
    def record(self, index: int) -> Mapping[str, Any]:
        """Return one record."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Return the source of a record for messages."""


class Table(Records):
    """Records of some files, or a part of them.

    Args:
        files: The files.
        rows: Positions of the records in all files together; None for all. Shape (N,), int64.
    """

    def __init__(
        self, files: Sequence[FileTable], rows: npt.NDArray[np.int64] | None = None
    ) -> None:
        self._files = files
        self._ends = np.cumsum([len(file.hashes) for file in files])
        hashes = np.concatenate([file.hashes for file in files])
        self._rows = np.arange(len(hashes)) if rows is None else rows
        self.hashes: Hashes = hashes[self._rows]
        first = files[0].columns
        self.columns = [c for c in first if all(c in file.columns for file in files)]
        self.class_names = {k: v for file in files for k, v in file.class_names.items()}
        self.fingerprint = xxhash.xxh3_128_hexdigest(self.hashes.tobytes())

    def part(self, chosen: npt.NDArray[np.bool_]) -> Table:
        """Return the chosen records. Shape (N,), bool."""
        return Table(self._files, self._rows[chosen])

    @override
    def __len__(self) -> int:
        return len(self._rows)

    @override
    def record(self, index: int) -> Mapping[str, Any]:
        file, row = self._find(index)
        return file.record(row)

    @override
    def describe(self, index: int) -> str:
        file, row = self._find(index)
        return file.place(row)

    def _find(self, index: int) -> tuple[FileTable, int]:
        row = int(self._rows[index])
        number = int(np.searchsorted(self._ends, row, side="right"))
        file = self._files[number]
        return file, row - int(self._ends[number]) + len(file.hashes)


def split(table: Table, fraction: float) -> DataSplits:
    """Hold out about a fraction of the records, by a hash of their content."""
    # By content: a record stays in its set when others are added, and equal records are in the same
    # set, so that no validation record was trained on.
    held_out = table.hashes < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    if not held_out.any():
        held_out = table.hashes == table.hashes.min()
    if held_out.all():
        raise DataError(
            f"{table.describe(0)}: {len(table)} records are too few to hold some out; give "
            "data.validation_files"
        )
    return DataSplits(table.part(~held_out), table.part(held_out))


def warn_of_leaks(train: Table, validation: Table) -> None:
    """Warn of validation records that are in the training set, too."""
    shared = np.isin(validation.hashes, train.hashes)
    if count := int(shared.sum()):
        _log.warning(
            "%d of %d validation records are also training records, which makes scores too good; "
            "the first: %s",
            count,
            len(validation),
            validation.describe(int(np.flatnonzero(shared)[0])),
        )
