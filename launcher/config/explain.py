"""Explain a key's value; compare two configs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from launcher.config import derive
from launcher.config._diagnose import unknown_key
from launcher.config._provenance import Origin
from launcher.config.fields import field_at
from launcher.config.load import LoadedConfig, load_config
from launcher.config.paths import RECIPES
from launcher.config.problems import leaves
from launcher.config.resume_rules import rule_of
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Explanation:
    """Explanation of a setting, or of a mapping of settings.

    Attributes:
        field: Type, range and meaning; None below a field that takes any mapping.
        writers: Everything that wrote the value, in order; the last one wins.
        derived: Text about derived values, or "".
        resume: Text about changing it on resume.
    """

    key: str
    value: Any
    field: FieldInfo | None
    writers: tuple[Origin, ...]
    derived: str
    resume: str


def explain(loaded: LoadedConfig, key: str) -> Explanation:
    """Return the explanation of a key; raise ConfigError if it does not exist."""
    values = loaded.config.model_dump(mode="json")
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            raise ConfigError([Problem(key, unknown_key(key, values))])
        found = found[part]
    return Explanation(
        key,
        found,
        field_at(RunConfig, values, key),
        tuple(loaded.composed.why(key)),
        _derived(loaded.config, key),
        _on_resume(key),
    )


def _derived(config: RunConfig, key: str) -> str:
    group = key.partition(".")[0]
    if group == "accumulation" or key in {"task.seq_len", "launch.processes"}:
        return str(derive.batch_plan(config))
    if key in {"max_steps", "max_epochs"} and config.max_steps and config.max_epochs:
        return "the run ends at whichever of max_steps and max_epochs comes first"
    return ""


def _on_resume(key: str) -> str:
    kind, reason = rule_of(key)
    verdict = {
        "safe": "may change",
        "allow": f"may change with --allow {key}",
        "impossible": "cannot change",
    }
    return f"{verdict[kind]}: {reason}"


ABSENT = object()
"""Value of a key in a config that does not have it; not None, which is a value."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that differs between two configs; `ABSENT` where one does not have it."""

    key: str
    left: Any
    right: Any


def diff(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Return every leaf that differs, sorted by key."""
    before, after = dict(leaves(left)), dict(leaves(right))
    pairs = (
        Difference(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted(before.keys() | after.keys())
    )
    return [pair for pair in pairs if pair.left is ABSENT or pair.left != pair.right]


def side(
    text: str, config_name: str = "config", config_dirs: Sequence[str | Path] = ()
) -> RunConfig:
    """Return the config that an argument of `config diff` names.

    Args:
        text: A run directory, a config.json, the name of a recipe, or overrides in one argument
            (quoted as in a shell); "" is the config without overrides.
        config_name: The primary config.
        config_dirs: The user's folders of YAML.
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
