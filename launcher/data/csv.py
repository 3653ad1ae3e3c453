"""CSV and TSV files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from typing_extensions import override

from launcher.data._tables.delimited import DelimitedTable, header
from launcher.data._tables.lines import LARGEST_RECORD
from launcher.data._tables.options import RowFiles
from launcher.data._tables.sources import Source, first_line
from launcher.data._tables.table import FileTable


class DelimitedText(RowFiles):
    """CSV files: one record per row, with quotes as RFC 4180 has them; all values are text.

    Files may be compressed with gzip, bzip2, xz or (with pyarrow) zstd, under any name.
    """

    delimiter: str = Field(min_length=1, max_length=1)
    """Character between fields: `,`, `;` or a tab (preset `tsv`)."""
    columns: tuple[str, ...] | None = Field(min_length=1)
    """Names of the columns of files without a header; null takes them from the first row."""

    @override
    def first_record(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        names = self.columns
        if names is None:
            names = tuple(header(first_line(path, LARGEST_RECORD), self.delimiter, f"{path}:1"))
        # Only names: every value is text.
        yield str(path), dict.fromkeys(names, "0")

    @override
    def read(self, path: Path) -> FileTable:
        return DelimitedTable(Source(path), self.delimiter, self.columns)
