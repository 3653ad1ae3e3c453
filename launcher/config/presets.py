"""Options by the names of their presets, for commands that try several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.config import _hydra_ext
from launcher.config.compose import compose, make_loader
from launcher.contracts import Option
from launcher.registry import option_class


def preset_names(group: str, config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """Return what `group=NAME` can choose, sorted."""
    with _hydra_ext.search_path_of(config_dirs):
        return sorted(make_loader().options(group))


def preset_option(
    group: str, words: Sequence[str], config_dirs: Sequence[str | Path] = ()
) -> Option:
    """Return a group's option as a new composition of some words has it.

    Args:
        group: The config group.
        words: Overrides, such as `parallelism=ddp`.
        config_dirs: The user's folders of YAML.

    Raises:
        ConfigError: There is no such preset, or a value is out of range.
    """
    values = compose(words, config_dirs=config_dirs).mapping[group]
    return option_class(group, values["kind"]).model_validate_json(json.dumps(values))
