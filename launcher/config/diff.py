"""Differences between two configs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.load import load_config
from launcher.config.paths import RECIPES
from launcher.config.problems import leaves
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem

ABSENT = object()
"""The value of a key on the side that does not have it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that is not the same on both sides; `ABSENT` where a side does not have it."""

    key: str
    left: Any
    right: Any


def diff(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Every leaf that differs, sorted by key."""
    before, after = dict(leaves(left)), dict(leaves(right))
    pairs = (
        Difference(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted(before.keys() | after.keys())
    )
    return [pair for pair in pairs if pair.left is ABSENT or pair.left != pair.right]


def side(
    text: str, config_name: str = "config", config_dirs: Sequence[str | Path] = ()
) -> RunConfig:
    """The config that a word of `config diff` names.

    Args:
        text: A run directory, a config.json, the name of a recipe, or overrides between spaces
            (quoted as in a shell); "" is the config without overrides.
        config_name: The primary config.
        config_dirs: The user's folders of YAML.

    Raises:
        ConfigError: There is no such thing, or it is no valid config.
    """
    path = Path(text)
    file = path / "config.json" if path.is_dir() else path
    if text and file.suffix == ".json" and file.is_file():
        return RunConfig.read(file)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError([Problem("", f"{text!r} is not a list of overrides: {error}")]) from error
    if len(words) == 1 and "=" not in text and not text.startswith("~"):
        if text.endswith(".json") or ("/" in text and not (RECIPES / f"{text}.yaml").is_file()):
            raise ConfigError([Problem("", f"there is no config at {text!r}")])
        words = [f"recipe={text}"]
    return load_config(words, config_name, config_dirs).config
