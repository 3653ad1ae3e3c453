"""Folders of YAML: in the package (a wheel) or next to it (a checkout), and of extensions.

An installed package adds a folder by an entry point of the group `trainctl.conf` that names the
package which holds it; an `__init__.py` is not needed.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

ENTRY_POINTS = "trainctl.conf"
_PACKAGE = Path(__file__).resolve().parents[1]


def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


CONF = _folder("conf")
RECIPES = _folder("recipes")


def shown(path: Path) -> str:
    """A path for messages: packaged files from `conf/` on, others from the current folder on."""
    for folder in (CONF, RECIPES):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder.parent))
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def expand_home(words: Iterable[str]) -> list[str]:
    """Expand `~` at the beginning of values, which shells do not expand after `key=`.

    The path is quoted: Hydra's grammar has no `~` in values, and a home folder may hold blanks.
    Words that hold quotes are left to the user.
    """

    def expanded(match: re.Match[str]) -> str:
        try:
            path = str(Path(match[0]).expanduser())
        except RuntimeError:  # no such user
            return match[0]
        return f"'{path}'"

    return [
        word if {"'", '"'} & set(word) else re.sub(r"(?<=[=,\[])~[^,\]]*", expanded, word)
        for word in words
    ]


def is_packaged(origin: str) -> bool:
    """Return whether an origin (`file:line: text`) names a file that comes with trainctl."""
    file = origin.partition(":")[0]
    return file.startswith((f"{CONF.name}/", f"{RECIPES.name}/")) and (CONF.parent / file).is_file()


def extension_folders() -> Iterator[tuple[str, Path]]:
    """Yield the YAML folders of installed packages with their entry points' names, sorted by them.

    A package that is not there yields none: its presets are then unknown.
    """
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        spec = None
        with suppress(ImportError, ValueError):
            spec = find_spec(entry_point.value)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield entry_point.name, Path(folder)
