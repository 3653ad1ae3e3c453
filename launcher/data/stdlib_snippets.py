"""Snippets of the standard library's source, labelled with their package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import xxhash
from pydantic import Field
from typing_extensions import override

from launcher.contracts import DataOption, DataSplits, Records
from launcher.data._files import is_held_out
from launcher.data._stdlib import names, no_source, root

# Large packages that every supported version of Python has.
PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")


Row = tuple[str, str, str]
"""Text, package and place."""


class StandardLibrarySnippets(DataOption):
    """Snippets of source (column `text`) of six packages of the standard library (column `label`).

    A built-in set for text classification: it needs no network, and is the same on every machine
    with the same Python version.
    """

    lines: int = Field(ge=1, le=1000)
    """Lines of a snippet."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Share of the snippets that are held out, by a hash of their text."""

    @override
    def preflight(self) -> None:
        if not (root() / PACKAGES[0]).is_dir():
            raise no_source()

    @override
    def peek(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield "stdlib_snippets", {"text": "", "label": PACKAGES[0]}

    @override
    def build(self) -> DataSplits:
        by_package: dict[str, list[Row]] = {package: [] for package in PACKAGES}
        folder = root()
        for name in sorted(names(folder)):
            package = name.partition("/")[0]
            if package in PACKAGES:
                lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
                for start in range(0, len(lines), self.lines):
                    text = "".join(lines[start : start + self.lines])
                    if text.strip():
                        by_package[package].append((text, package, f"{name}:{start + 1}"))
        count = min(map(len, by_package.values()))
        parts: dict[bool, list[Row]] = {True: [], False: []}
        for rows in by_package.values():
            # As many of each package, so that always naming the largest one is no good score.
            for row in sorted(rows, key=lambda row: xxhash.xxh3_64_intdigest(row[0].encode()))[
                :count
            ]:
                parts[is_held_out(row[0], self.validation_fraction)].append(row)
        if not parts[True] or not parts[False]:
            raise no_source()
        return DataSplits(Snippets(parts[False]), Snippets(parts[True]))


class Snippets(Records):
    """Texts, their labels and their places."""

    columns = ("text", "label")

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows
        hashed = xxhash.xxh3_128()
        for row in rows:
            hashed.update("\0".join(row).encode())
        self.fingerprint = hashed.hexdigest()

    @override
    def __len__(self) -> int:
        return len(self._rows)

    @override
    def record(self, index: int) -> Mapping[str, str]:
        return dict(zip(self.columns, self._rows[index], strict=False))

    @override
    def describe(self, index: int) -> str:
        return self._rows[index][2]
