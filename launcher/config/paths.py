"""Where the packaged YAML lives: in the package in a wheel, beside it in a checkout."""

from pathlib import Path

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
