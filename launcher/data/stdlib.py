"""Source text of Python's standard library, which every machine has."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field
from typing_extensions import override

from launcher.contracts import DataOption, DataSplits
from launcher.data._files import FilePart, TextRecords, is_held_out, scan_file
from launcher.errors import DataError

# Installed packages, tests, and generated tables.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
)
# Written when the interpreter was built or installed: they differ between machines.
_SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")


class StandardLibrary(DataOption):
    """The source text of this Python's standard library without tests, about 11 MB.

    The files, their order and the split are the same on every machine with a complete installation
    of the same Python version.
    """

    validation_fraction: float = Field(gt=0, lt=1)
    """Share of the files that are held out, by a hash of their path."""

    @override
    def preflight(self) -> None:
        if not any(_root().glob("*.py")):
            raise _no_source()

    @override
    def build(self) -> DataSplits:
        root = _root()
        splits: dict[bool, list[FilePart]] = {True: [], False: []}
        for name in sorted(_names(root)):
            found = scan_file(root / name, label=name)
            # An __init__.py may be empty; the rest is UTF-8 by Python's rules.
            if isinstance(found, FilePart):
                splits[is_held_out(name, self.validation_fraction)].append(found)
        if not splits[False]:
            raise _no_source()
        return DataSplits(train=TextRecords(splits[False]), validation=TextRecords(splits[True]))


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _names(root: Path) -> Iterator[str]:
    """Yield the paths of the source files below the root, with `/`."""
    for folder, folders, files in os.walk(root):
        # In place, so that os.walk does not enter them.
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in files:
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES):
                yield Path(folder, name).relative_to(root).as_posix()


def _no_source() -> DataError:
    return DataError(
        f"{_root()}: this Python comes without the source of its standard library; train on your "
        "own text with data=text data.files='corpus/**/*.txt'"
    )
