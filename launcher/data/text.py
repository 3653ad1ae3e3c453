"""The user's own text files."""

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
from launcher.data._files import Document, Unreadable, is_held_out, read_document
from launcher.data._records import TextRecords
from launcher.errors import DataError

_log = logging.getLogger("trainctl.data")

_SHOWN = 5
"""Bad files that an error names before it only counts them."""


class TextFiles(DataOption):
    """Text files in UTF-8, one record each (column `text`); a part is held out for validation.

    Held out are `validation_files`, or else whole files by a hash of their path below the folder of
    all files, or else, where that would hold out none or more than half of the text (as with a
    single file), the end of each file from a line on.
    """

    files: str | tuple[str, ...] = Field(min_length=1)
    """Files by path or pattern, or a list of them: `corpus/**/*.txt`, from the current folder; `**`
    reaches into folders."""
    validation_files: str | tuple[str, ...] | None = Field(min_length=1)
    """Files to hold out, likewise; a file that `files` matches too is held out.
    Null to split `files`."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Share to hold out where `validation_files` is null."""
    on_error: Literal["stop", "skip"]
    """What a file that is empty, unreadable or not UTF-8 does: stop the run, or be left out and
    counted."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if self.validation_files is None:
            return found
        return {**found, "validation_fraction": "validation_files says what is held out"}

    @override
    def preflight(self) -> None:
        train, validation = self._find()
        if self.on_error == "stop":
            _stop_at([bad for path in [*train, *validation] if (bad := _glance(path))])

    @override
    def build(self) -> DataSplits:
        train, validation = self._find()
        documents = self._read(train)
        if validation:
            held_out = TextRecords(self._read(validation))
            return DataSplits(train=TextRecords(documents), validation=held_out)
        return _split(documents, self.validation_fraction)

    def _find(self) -> tuple[list[Path], list[Path]]:
        """Files to train on and files to hold out, without the ones in both."""
        train = _matches(self.files, "data.files")
        if self.validation_files is None:
            return train, []
        validation = _matches(self.validation_files, "data.validation_files")
        held_out = {path.resolve() for path in validation}
        train = [path for path in train if path.resolve() not in held_out]
        if not train:
            raise DataError("data.validation_files matches every file that data.files matches")
        return train, validation

    def _read(self, paths: Sequence[Path]) -> list[Document]:
        results = [read_document(path) for path in paths]
        documents = [result for result in results if isinstance(result, Document)]
        bad = [result for result in results if isinstance(result, Unreadable)]
        if (self.on_error == "stop" or not documents) and bad:
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
        return documents


def _matches(patterns: str | Sequence[str], key: str) -> list[Path]:
    """The regular files that some patterns match, each once, in the order of their paths.

    Raises:
        DataError: A pattern matches no file.
    """
    found: dict[Path, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = str(Path(pattern).expanduser())
        # Path.glob would neither follow linked folders nor pass over hidden ones.
        matches = [Path(match) for match in glob.glob(expanded, recursive=True)]  # noqa: PTH207
        files = [path for path in matches if path.is_file()]
        if not files:
            what = "only folders" if any(path.is_dir() for path in matches) else "no file"
            hint = f"; write {pattern.rstrip('/*')}/**/*.txt" if what == "only folders" else ""
            raise DataError(f"{key}: {pattern!r} matches {what} in {Path.cwd()}{hint}")
        for path in files:
            found.setdefault(path.resolve(), path)
    return sorted(found.values(), key=Path.as_posix)


def _glance(path: Path) -> Unreadable | None:
    """What can be said against a file without reading it."""
    if not os.access(path, os.R_OK):
        return Unreadable(path, "not readable", f"{path}: cannot be read: permission denied")
    if path.stat().st_size == 0:
        return Unreadable(path, "empty", f"{path}: is empty")
    return None


def _stop_at(bad: Sequence[Unreadable]) -> None:
    if not bad:
        return
    lines = [b.message for b in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"and {len(bad) - _SHOWN} more files")
    raise DataError("\n  ".join([*lines, "(data.on_error=skip leaves such files out)"]))


def _split(documents: Sequence[Document], fraction: float) -> DataSplits:
    """Hold out whole files, or the end of each where that gives no fair part."""
    top = os.path.commonpath([Path(d.name).absolute().parent for d in documents])
    splits: dict[bool, list[Document]] = {True: [], False: []}
    for document in documents:
        name = Path(document.name).absolute().relative_to(top).as_posix()
        splits[is_held_out(name, fraction)].append(document)
    held_out, total = (sum(len(d.text) for d in part) for part in (splits[True], documents))
    if 0 < held_out <= total / 2:
        return DataSplits(train=TextRecords(splits[False]), validation=TextRecords(splits[True]))
    halves = [_cut(document, fraction) for document in documents]
    return DataSplits(
        train=TextRecords(head for head, _ in halves if head.text),
        validation=TextRecords(tail for _, tail in halves if tail.text),
    )


def _cut(document: Document, fraction: float) -> tuple[Document, Document]:
    """A document's first part, and its last: from the line that begins next after the cut.

    Where no line begins there, the last line before it that is not the first; a text of a single
    line is cut within the line.
    """
    text = document.text
    cut = min(max(1, round(len(text) * (1 - fraction))), len(text))
    after = text.find("\n", cut - 1) + 1
    before = text.rfind("\n", 0, cut) + 1
    start = after if 0 < after < len(text) else before or cut
    line = text.count("\n", 0, start) + 1
    head = Document(document.name, text[:start])
    return head, Document(f"{document.name}:{line}", text[start:])
