"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from launcher.data._tables.arrow_table import first_row, read_parquet
from launcher.data._tables.options import RowFiles
from launcher.data._tables.table import FileTable


class ParquetFiles(RowFiles):
    """Parquet files: one record per row.

    Numbers of classes become their names where the file has those, as files of the datasets library
    do.
    """

    extra: ClassVar[str | None] = "data"

    @override
    def first_record(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield from first_row(path, parquet=True)

    @override
    def read(self, path: Path) -> FileTable:
        return read_parquet(path)
