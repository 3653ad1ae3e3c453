"""JSON Lines files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from launcher.data._tables.json_lines import JsonLinesTable, parse_object
from launcher.data._tables.lines import LARGEST_RECORD
from launcher.data._tables.options import RowFiles
from launcher.data._tables.sources import BOM, Source, first_line
from launcher.data._tables.table import FileTable


class JsonLines(RowFiles):
    """JSON Lines: one JSON object per line, whose keys are the columns.

    Files may be compressed with gzip, bzip2, xz or (with pyarrow) zstd, under any name.
    """

    @override
    def first_record(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        line = first_line(path, LARGEST_RECORD)
        yield str(path), parse_object(line.removeprefix(BOM), f"{path}:1")

    @override
    def read(self, path: Path) -> FileTable:
        return JsonLinesTable(Source(path))
