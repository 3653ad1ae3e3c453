"""Folders of YAML: packaged ones, and those of extensions."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

ENTRY_POINTS = "trainctl.conf"
_PACKAGE = Path(__file__).resolve().parents[1]


# A wheel has the folders inside of the package, a checkout next to it.
def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


CONF = _folder("conf")
RECIPES = _folder("recipes")


def shown(path: Path) -> str:
    """Return a path for messages, relative to the package or to the current folder."""
    for folder in (CONF, RECIPES):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder.parent))
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def expand_home(words: Iterable[str]) -> list[str]:
    """Expand `~` at the beginning of values, which shells do not expand after `key=`."""
    # Quoted, because Hydra's grammar has no `~` in values and a home folder may have spaces. Words
    # with quotes are left as they are: the user meant the text.

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
    """Return True if an origin (`file:line: text`) is a packaged file."""
    file = origin.partition(":")[0]
    return file.startswith((f"{CONF.name}/", f"{RECIPES.name}/")) and (CONF.parent / file).is_file()


def extension_folders() -> Iterator[tuple[str, Path]]:
    """Yield name and YAML folder of each entry point `trainctl.conf`, sorted by name."""
    # The entry point names the package of the folder. One that is broken yields nothing: it must
    # not stop a run that does not use its presets.
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        spec = None
        with suppress(ImportError, ValueError):
            spec = find_spec(entry_point.value)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield entry_point.name, Path(folder)
