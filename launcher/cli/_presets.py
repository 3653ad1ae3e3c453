"""Find the YAML files of presets and recipes, without Hydra."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.config.paths import CONF, RECIPES, extension_folders


# Hydra lists them too, but takes longer to import than a Tab may take. A test compares the two.
def presets(group: str, config_dirs: Iterable[Path] = ()) -> dict[str, Path]:
    """Return the files of a group (or `recipe`) by name, sorted; `config_dirs` come first."""
    # Of equal names the first wins, as in Hydra's search path: the user's, the packaged one, that
    # of an installed package. A leading underscore hides a file.
    extensions = (folder for _, folder in extension_folders())
    folders = [*config_dirs, *_from_environment(), CONF, *extensions]
    places = [folder / group for folder in folders]
    if group == "recipe":
        places.insert(places.index(CONF / group) + 1, RECIPES)
    found: dict[str, Path] = {}
    for place in places:
        for path in place.rglob("*.yaml") if place.is_dir() else ():
            name = path.relative_to(place).with_suffix("").as_posix()
            if not name.startswith("_") and "/_" not in name:
                found.setdefault(name, path)
    return dict(sorted(found.items()))


def primary(config_dirs: Iterable[Path] = ()) -> Path:
    """Return the config.yaml that Hydra takes."""
    folders = [*config_dirs, *_from_environment()]
    found = (folder / "config.yaml" for folder in folders)
    return next((path for path in found if path.is_file()), CONF / "config.yaml")


def default_of(path: Path, group: str) -> str | None:
    """Return a group's option in a file's defaults list: `optimizer`, or `override /optimizer`."""
    entries = _read(path).get("defaults")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(name := entry.get(group), str):
            return name
    return None


def summary(path: Path) -> str:
    """Return the first sentence of a file's comment, without the full stop."""
    # From the comment and not from a key: every key of a preset must be a setting of its kind.
    lines: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        for line in path.read_text("utf-8").splitlines():
            text = line.removeprefix("#").strip()
            if line.startswith("#") and not text.startswith("@package"):
                lines.append(text)
            elif lines or not line.startswith("#"):
                break
    return " ".join(lines).partition(". ")[0].removesuffix(".")


def kind(path: Path, seen: frozenset[Path] = frozenset()) -> str | None:
    """Return the kind of a preset, or of the preset that it extends, if any."""
    values = _read(path)
    if isinstance(values.get("kind"), str):
        return str(values["kind"])
    # In reverse, because later entries of a defaults list win. `seen` ends a circle of files.
    extended = values.get("defaults")
    for name in reversed(extended) if isinstance(extended, list) else ():
        parent = path.with_name(f"{name}.yaml")
        if parent not in seen | {path} and (found := kind(parent, seen | {path})):
            return found
    return None


def _read(path: Path) -> dict[str, Any]:
    import yaml

    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        values = yaml.safe_load(path.read_text("utf-8"))
        return values if isinstance(values, dict) else {}
    return {}


def _from_environment() -> Iterator[Path]:
    listed = os.environ.get("TRAINCTL_CONFIG_DIR", "").split(os.pathsep)
    return (Path(folder) for folder in listed if folder)
