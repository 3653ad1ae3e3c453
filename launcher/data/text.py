"""Text files of the user."""

from __future__ import annotations

import glob
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
from launcher.errors import DataError

_log = logging.getLogger("trainctl.data")

# Maximum number of bad files that an error names.
_SHOWN = 5
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
            _stop_at([bad for path in [*train, *validation] if (bad := self._glance(path))])

    @override
    def build(self) -> DataSplits:
        train, validation = self._find()
        parts = self._scan(train)
        if validation:
            held_out = TextRecords(self._scan(validation))
            return DataSplits(train=TextRecords(parts), validation=held_out)
        return _split(parts, self.validation_fraction)

    def _find(self) -> tuple[list[Path], list[Path]]:
        """Return the files to train on and those to hold out."""
        train = _matches(self.files, "data.files")
        if self.validation_files is None:
            return train, []
        validation = _matches(self.validation_files, "data.validation_files")
        # The same file may be matched through a link.
        held_out = {path.resolve() for path in validation}
        train = [path for path in train if path.resolve() not in held_out]
        if not train:
            raise DataError("data.validation_files matches every file that data.files matches")
        return train, validation

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
            _stop_at(bad)
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
            "%s: looks like a CSV file with the columns %s%s, but is read as plain text; name it "
            ".csv to see how to convert it, or set data.allow_structured=true",
            path,
            ", ".join(columns),
            more,
        )


def _matches(patterns: str | Sequence[str], key: str) -> list[Path]:
    """Return the regular files that match patterns, each once, ordered by path."""
    found: dict[Path, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = str(Path(pattern).expanduser())
        # Path.glob follows no linked folders, and enters hidden ones.
        matches = [Path(match) for match in glob.glob(expanded, recursive=True)]  # noqa: PTH207
        files = [path for path in matches if path.is_file()]
        if not files:
            raise DataError(f"{key}: {pattern!r} {_no_file(pattern, matches)}")
        for path in files:
            found.setdefault(path.resolve(), path)
    # Sorted: the order of a folder's entries differs between file systems.
    return sorted(found.values(), key=Path.as_posix)


def _no_file(pattern: str, matches: Sequence[Path]) -> str:
    if any(path.is_dir() for path in matches):
        return f"matches only folders in {Path.cwd()}; write {pattern.rstrip('/*')}/**/*.txt"
    for path in matches:
        if path.is_symlink() and not path.exists():
            return f"matches only a broken link: {path} points to {path.readlink()}"
        return f"matches no regular file: {path} is a pipe, a socket or a device; copy it to a file"
    return f"matches no file in {Path.cwd()}"


def _stop_at(bad: Sequence[BadFile]) -> None:
    if not bad:
        return
    lines = [b.message for b in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"and {len(bad) - _SHOWN} more files")
    raise DataError("\n  ".join([*lines, "(data.on_error=skip leaves such files out)"]))


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
