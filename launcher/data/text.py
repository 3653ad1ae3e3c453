"""Text files of the user."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ConfigView, DataOption, DataSplits
from launcher.data._files import BadFile, FilePart, TextRecords, is_held_out, scan_file, split_part
from launcher.data._formats import format_of_name, other_format, table_columns
from launcher.data._paths import split_files, stop_at

_log = logging.getLogger("trainctl.data")

_SNIFFED = 4096


class TextFiles(DataOption):
    """Text files in UTF-8, one record each (column `text`); a part is held out for validation.

    The held-out set is `validation_files`. If null, complete files are held out, chosen by a hash
    of their path below the common folder; or the end of each file, if that would be none or more
    than half of the text. A file above 4 MiB is read as several records, which are one text.
    """

    files: str | tuple[str, ...] = Field(min_length=1)
    """Files by path or pattern, or a list of them: `corpus/**/*.txt`, from the current folder; `**`
    reaches into folders."""
    validation_files: str | tuple[str, ...] | None = Field(min_length=1)
    """Files to hold out, by path or pattern, also if `files` matches them; null to split
    `files`."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Fraction of the text to hold out if `validation_files` is null."""
    allow_structured: bool
    """Read JSON, JSON Lines and CSV files as plain text, syntax included; false refuses JSON Lines,
    JSON arrays and files with the names of CSV."""
    on_error: Literal["stop", "skip"]
    """Action for a file that is empty, unreadable, not UTF-8 or in another format: stop the run, or
    leave it out and count it."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if self.validation_files is None:
            return found
        return {**found, "validation_fraction": "validation_files is the held-out set"}

    @override
    def preflight(self) -> None:
        train, validation = self._find()
        if self.on_error == "stop":
            bad = [bad.message for path in [*train, *validation] if (bad := self._glance(path))]
            stop_at(bad, "files")

    @override
    def build(self) -> DataSplits:
        train, validation = self._find()
        parts = self._scan(train)
        if validation:
            held_out = TextRecords(self._scan(validation))
            return DataSplits(train=TextRecords(parts), validation=held_out)
        return _split(parts, self.validation_fraction)

    def _find(self) -> tuple[list[Path], list[Path]]:
        return split_files(self.files, self.validation_files)

    def _glance(self, path: Path) -> BadFile | None:
        """Return the problem of a file that is visible without reading all of it."""
        if not os.access(path, os.R_OK):
            return BadFile(path, "not readable", f"{path}: cannot be read: permission denied")
        if path.stat().st_size == 0:
            return BadFile(path, "empty", f"{path}: is empty")
        # Reading all files would make `trainctl check` as slow as the run.
        if format_of_name(path) is None:
            return None
        with path.open("rb") as file:
            found = other_format(path, file.read(_SNIFFED), structured=self.allow_structured)
        return BadFile(path, *found) if found else None

    def _scan(self, paths: Sequence[Path]) -> list[FilePart]:
        results = [scan_file(path, structured=self.allow_structured) for path in paths]
        parts = [result for result in results if isinstance(result, FilePart)]
        bad = [result for result in results if isinstance(result, BadFile)]
        if (self.on_error == "stop" or not parts) and bad:
            stop_at([each.message for each in bad], "files")
        if bad:
            tally = ", ".join(f"{n} {kind}" for kind, n in Counter(b.kind for b in bad).items())
            _log.warning(
                "skipped %d of %d files: %s; the first: %s",
                len(bad),
                len(paths),
                tally,
                bad[0].message,
            )
        if not self.allow_structured:
            _warn_of_tables(parts)
        return parts


def _warn_of_tables(parts: Sequence[FilePart]) -> None:
    # Only a warning, because it is a guess: prose may look like a table.
    tables: list[tuple[Path, list[str]]] = []
    for part in parts:
        with part.path.open("rb") as file:
            if columns := table_columns(file.read(_SNIFFED)):
                tables.append((part.path, columns))
    if tables:
        path, columns = tables[0]
        more = f" (and {len(tables) - 1} more files)" if len(tables) > 1 else ""
        _log.warning(
            "%s: looks like a CSV file with the columns %s%s, but is read as plain text; write "
            "data=csv to read it by columns, or set data.allow_structured=true",
            path,
            ", ".join(columns),
            more,
        )


def _split(parts: Sequence[FilePart], fraction: float) -> DataSplits:
    """Hold out complete files, or the end of each file if there are too few of them."""
    # Names below the common folder are the same wherever the corpus is.
    top = os.path.commonpath([part.path.absolute().parent for part in parts])
    splits: dict[bool, list[FilePart]] = {True: [], False: []}
    for part in parts:
        name = part.path.absolute().relative_to(top).as_posix()
        splits[is_held_out(name, fraction)].append(part)
    held_out, total = (sum(map(len, some)) for some in (splits[True], parts))
    # One huge file among the held-out ones would leave little to train on.
    if 0 < held_out <= total / 2:
        return DataSplits(train=TextRecords(splits[False]), validation=TextRecords(splits[True]))
    halves = [split_part(part, fraction) for part in parts]
    return DataSplits(
        train=TextRecords(head for head, _ in halves if len(head)),
        validation=TextRecords(tail for _, tail in halves if len(tail)),
    )
