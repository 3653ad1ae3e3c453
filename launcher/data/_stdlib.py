"""Source files of Python's standard library."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import DataError

# Installed packages, tests, and generated tables.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
)
# Written when the interpreter was built or installed: they differ between machines.
_SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")


def root() -> Path:
    """Return the folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def names(folder: Path) -> Iterator[str]:
    """Yield the paths of the source files below a folder, with `/`."""
    for at, folders, files in os.walk(folder):
        # In place, so that os.walk does not enter them.
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in files:
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES):
                yield Path(at, name).relative_to(folder).as_posix()


def no_source() -> DataError:
    """Return the error of a Python without sources."""
    return DataError(
        f"{root()}: this Python comes without the source of its standard library; train on your "
        "own text with data=text data.files='corpus/**/*.txt'"
    )
