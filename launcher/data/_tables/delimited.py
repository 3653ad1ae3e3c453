"""Records of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import override

from launcher.data._tables.lines import LARGEST_RECORD, BadRecordError, LineTable, decode
from launcher.data._tables.sources import BOM, Source
from launcher.errors import DataError


class DelimitedTable(LineTable):
    """Rows of fields; a quoted field may contain line ends.

    Args:
        source: The file.
        delimiter: Character between fields.
        names: Names of the columns; None if the first row has them.
    """

    def __init__(self, source: Source, delimiter: str, names: Sequence[str] | None) -> None:
        self._delimiter = delimiter
        self._names = names
        # The default refuses fields above 128 KiB.
        csv.field_size_limit(LARGEST_RECORD)
        super().__init__(source)

    @override
    def _rows(self, file: Any) -> Iterator[tuple[int, int, bytes]]:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            start, first = lines.offset, lines.line + 1
            try:
                next(reader)
            except StopIteration:
                return
            except csv.Error:
                # `_parse` finds it again, and has a better message. The reader would not go on.
                reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            content = lines.take().rstrip(b"\r\n")
            if first == 1 and content.startswith(BOM):
                content, start = content.removeprefix(BOM), len(BOM)
            if self._names is None:
                self._names = header(content, self._delimiter, f"{self._source.path}:{first}")
            elif content.strip():
                yield start, first, content

    @override
    def _parse(self, content: bytes, line: int) -> Mapping[str, Any]:
        place = f"{self._source.path}:{line}"
        return parse_row(content, self._delimiter, self._names or (), place)


class _Lines(Iterator[str]):
    """Lines for a CSV reader, as it takes them: a row may have several."""

    def __init__(self, file: Any) -> None:
        self.offset, self.line = 0, 0
        self._file = file
        self._taken: list[bytes] = []

    @override
    def __next__(self) -> str:
        content = self._file.readline(LARGEST_RECORD)
        if not content:
            raise StopIteration
        self.line += 1
        self.offset += len(content)
        self._taken.append(content)
        # Only to find the ends of rows, which are ASCII: any byte is a letter of Latin-1.
        return str(content, "latin-1")

    def take(self) -> bytes:
        """Return the bytes of the lines since the last call."""
        content = b"".join(self._taken)
        self._taken = []
        return content


def header(content: bytes, delimiter: str, place: str) -> Sequence[str]:
    """Return the names of the columns in the first row."""
    names = _fields(content.removeprefix(BOM), delimiter, place)
    if len(set(names)) < len(names) or not all(names):
        raise DataError(
            f"{place}: the first row must name each column once, but is {', '.join(names)!r:.200}; "
            "set data.columns if the file has no such row"
        )
    return names


def parse_row(
    content: bytes, delimiter: str, names: Sequence[str], place: str
) -> Mapping[str, Any]:
    """Return a row by column; raise BadRecordError if it has more or fewer fields."""
    fields = _fields(content, delimiter, place)
    if len(fields) != len(names):
        raise BadRecordError(
            f"{place}: must have {len(names)} fields ({', '.join(names):.100}), but has "
            f"{len(fields)}"
        )
    return dict(zip(names, fields, strict=True))


def _fields(content: bytes, delimiter: str, place: str) -> list[str]:
    text = decode(content, place)
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadRecordError(f"{place}: {error}") from None
    if len(rows) != 1:
        raise BadRecordError(f"{place}: quotes are not balanced")
    return rows[0]
