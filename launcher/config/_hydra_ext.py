"""Additions to Hydra: the search path of YAML, and recipes/ as the group `recipe`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from typing_extensions import override

from launcher.config.paths import CONF, RECIPES, extension_folders
from launcher.errors import ConfigError, Problem

# The first match wins: the user's folders, conf/, recipes/, then those of installed packages. With
# Hydra's own --config-dir a user's file could not replace a packaged one.
VARIABLE = "TRAINCTL_CONFIG_DIR"

_user_folders: ContextVar[tuple[Path, ...]] = ContextVar("_user_folders", default=())


class TrainctlSearchPath(SearchPathPlugin):
    """Adds the user's folders before conf/, and recipes and extensions after it."""

    @override
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = SearchPathQuery(provider="main", path=None)
        if not any(_is_conf(element.path) for element in search_path.get_path()):
            return  # another Hydra application in the same process
        for folder in _user_folders.get():
            search_path.prepend("user", f"file://{folder}", anchor=main)
        search_path.append("recipes", f"{RecipeSource.scheme()}://{RECIPES}")
        for name, folder in extension_folders():
            search_path.append(f"extension {name}", f"file://{folder}")


class RecipeSource(ConfigSource):
    """Folder of YAML as the config group `recipe`."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self._files: ConfigSource = FileConfigSource(provider, f"file://{self.path}")

    @staticmethod
    @override
    def scheme() -> str:
        return "recipes"

    @override
    def available(self) -> bool:
        return self._files.available()

    @override
    def load_config(self, config_path: str) -> ConfigResult:
        inside = _inside(config_path)
        if inside is None:
            raise ConfigLoadError(f"Config not found : {config_path}")
        return replace(self._files.load_config(inside), path=f"{self.scheme()}://{self.path}")

    @override
    def is_group(self, config_path: str) -> bool:
        inside = _inside(config_path)
        return config_path == "" or (inside is not None and self._files.is_group(inside))

    @override
    def is_config(self, config_path: str) -> bool:
        inside = _inside(config_path)
        return bool(inside) and self._files.is_config(inside or "")

    @override
    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else ["recipe"]
        inside = _inside(config_path)
        return [] if inside is None else self._files.list(inside, results_filter)


def _inside(config_path: str) -> str | None:
    """Return `llm/sft` for `recipe/llm/sft`; None for a path of another group."""
    group, _, rest = config_path.partition("/")
    return rest if group == "recipe" else None


def _is_conf(path: str) -> bool:
    return path.removeprefix("file://") == str(CONF)


@contextmanager
def search_path_of(config_dirs: Sequence[str | Path]) -> Iterator[None]:
    """Add the user's folders of YAML, then $TRAINCTL_CONFIG_DIR, to Hydra's search path."""
    # By a context variable, because Hydra creates the plugins itself, without arguments.
    token = _user_folders.set(_existing(config_dirs))
    for plugin in (RecipeSource, TrainctlSearchPath):
        Plugins.instance().register(plugin)
    try:
        yield
    finally:
        _user_folders.reset(token)


def _existing(config_dirs: Sequence[str | Path]) -> tuple[Path, ...]:
    sources = [(Path(folder), "--config-dir") for folder in config_dirs]
    listed = os.environ.get(VARIABLE, "").split(os.pathsep)
    sources += [(Path(folder), VARIABLE) for folder in listed if folder]
    problems = [
        Problem("", f"the config folder {str(folder)!r} does not exist", source)
        for folder, source in sources
        if not folder.is_dir()
    ]
    # Hydra ignores a folder that does not exist: a typing error would run the packaged presets.
    if problems:
        raise ConfigError(problems)
    return tuple(folder.absolute() for folder, _ in sources)


def base() -> dict[str, Any]:
    """Return the compatibility level, which Hydra 1.3 requires and 1.4 deprecates."""
    major, minor = (int(part) for part in re.findall(r"\d+", version("hydra-core"))[:2])
    return {"version_base": "1.3"} if (major, minor) < (1, 4) else {}
