"""Explanation of a key's value: its writers, its range, what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from launcher.config import derive
from launcher.config._provenance import Origin
from launcher.config.fields import field_at
from launcher.config.load import LoadedConfig
from launcher.config.resume_rules import rule_of
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest_keys, did_you_mean


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known about one key.

    Attributes:
        key: The dotted key: a setting, or a mapping of settings.
        value: Its value, as JSON knows it.
        field: Type, range and meaning; None below a field that takes any mapping.
        writers: Everything that wrote it, in order; the last one won.
        derived: What follows from the value, or what it follows from; "" where nothing does.
        resume: What happens when it changes on resume.
    """

    key: str
    value: Any
    field: FieldInfo | None
    writers: tuple[Origin, ...]
    derived: str
    resume: str


def explain(loaded: LoadedConfig, key: str) -> Explanation:
    """Everything about one key of a config.

    Raises:
        ConfigError: There is no such key.
    """
    values = loaded.config.model_dump(mode="json")
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            hint = did_you_mean(closest_keys(key, _keys(values)))
            raise ConfigError([Problem(key, f"no such setting{hint}")])
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


def _keys(values: Any, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return []
    return [
        found
        for key, value in values.items()
        for found in (f"{prefix}{key}", *_keys(value, f"{prefix}{key}."))
    ]
