"""Records of text files with one record per line or row, found by their bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash
from typing_extensions import override

from launcher.data._tables.sources import Source
from launcher.data._tables.table import FileTable
from launcher.errors import DataError

LARGEST_RECORD = 2**26
"""Bytes of the longest record: the memory of a run must not depend on one line."""


class BadRecordError(DataError):
    """A record that cannot be read; `on_error=skip` leaves it out."""


class LineTable(FileTable):
    """Records at known bytes of a file; a subclass finds and parses them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        bounds: list[tuple[int, int, int]] = []
        hashes: list[int] = []
        bad: list[str] = []
        lacking: set[str] = set()
        columns: dict[str, None] = {}
        with source.open() as file:
            for start, line, content in self._rows(file):
                try:
                    record = self._parse(content, line)
                except BadRecordError as error:
                    bad.append(str(error))
                    continue
                if not hashes:
                    columns = dict.fromkeys(record)
                if record.keys() != columns.keys():
                    lacking |= columns.keys() ^ record.keys()
                bounds.append((start, start + len(content), line))
                hashes.append(xxhash.xxh3_64_intdigest(content))
        self.columns = [name for name in columns if name not in lacking]
        self.class_names = {}
        self.skipped = bad
        self.hashes = np.array(hashes, dtype=np.uint64)
        self._bounds = np.array(bounds, dtype=np.int64).reshape(-1, 3)

    @override
    def record(self, index: int) -> Mapping[str, Any]:
        start, end, line = self._bounds[index].tolist()
        content = self._source.read(start, end)
        # A file that changes during the run would not match the fingerprint in its checkpoints.
        if xxhash.xxh3_64_intdigest(content) != int(self.hashes[index]):
            raise DataError(f"{self.place(index)}: changed since the run started")
        return self._parse(content, line)

    @override
    def place(self, index: int) -> str:
        return f"{self._source.path}:{int(self._bounds[index, 2])}"

    @abstractmethod
    def _rows(self, file: Any) -> Iterator[tuple[int, int, bytes]]:
        """Yield the first byte, the first line (from 1) and the bytes of each record."""

    @abstractmethod
    def _parse(self, content: bytes, line: int) -> Mapping[str, Any]:
        """Return the record; raise BadRecordError if it is damaged."""


def decode(content: bytes, place: str) -> str:
    """Decode UTF-8; raise BadRecordError with the place of the first bad byte."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n"), len(before.rpartition(b"\n")[2].decode("utf-8")) + 1
        raise BadRecordError(
            f"{_at(place, line, column)}: byte 0x{content[error.start]:02x} is not UTF-8 "
            f"({error.reason})"
        ) from None
    if (nul := content.find(b"\0")) >= 0:
        raise BadRecordError(f"{_at(place, 0, nul + 1)}: a NUL byte: a binary file or UTF-16")
    return text


def _at(place: str, lines: int, column: int) -> str:
    path, _, line = place.rpartition(":")
    return f"{path}:{int(line) + lines}:{column}"
