"""Options of sources of files with rows."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ConfigView, DataOption, DataSplits
from launcher.data._paths import split_files, stop_at
from launcher.data._tables.table import FileTable, Table, split, warn_of_leaks
from launcher.errors import DataError

_log = logging.getLogger("trainctl.data")


class RowFiles(DataOption):
    """Files with one record per row."""

    files: str | tuple[str, ...] = Field(min_length=1)
    """Files by path or pattern, or a list of them: `rows/*`, from the current folder; `**` reaches
    into folders."""
    validation_files: str | tuple[str, ...] | None = Field(min_length=1)
    """Files to hold out, by path or pattern, also if `files` matches them; null to split
    `files`."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Fraction of the records to hold out if `validation_files` is null, by a hash of their
    content: adding records does not move others."""
    on_error: Literal["stop", "skip"]
    """Action for a record that cannot be read: stop the run, or leave it out and count it."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if self.validation_files is None:
            return found
        return {**found, "validation_fraction": "validation_files is the held-out set"}

    @override
    def preflight(self) -> None:
        for _ in self.peek():
            pass

    @override
    def peek(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        train, validation = split_files(self.files, self.validation_files)
        for path in [*train, *validation]:
            try:
                yield from self.first_record(path)
            except DataError:
                if self.on_error == "stop":
                    raise

    @override
    def build(self) -> DataSplits:
        train, validation = split_files(self.files, self.validation_files)
        table = self._table(train)
        if not validation:
            return split(table, self.validation_fraction)
        held_out = self._table(validation)
        warn_of_leaks(table, held_out)
        return DataSplits(table, held_out)

    @abstractmethod
    def first_record(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield a file's first record with its place, reading little of the file."""

    @abstractmethod
    def read(self, path: Path) -> FileTable:
        """Read a file; raise DataError if it is not of this kind."""

    def _table(self, paths: Sequence[Path]) -> Table:
        tables: list[FileTable] = []
        bad: list[str] = []
        for path in paths:
            try:
                table = self.read(path)
            except DataError as error:
                bad.append(str(error))
                continue
            bad += table.skipped
            tables.append(table)
        if self.on_error == "stop":
            stop_at(bad, "records")
        count = sum(len(table.hashes) for table in tables)
        if not count:
            raise DataError("\n  ".join(["there is no record", *bad[:5]]))
        if bad:
            _log.warning(
                "skipped %d records or files, read %d records; the first: %s",
                len(bad),
                count,
                bad[0],
            )
        return Table([table for table in tables if len(table.hashes)])
