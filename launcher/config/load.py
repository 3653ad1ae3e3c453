"""Load a config from overrides: compose, validate, apply every rule."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from launcher.config import _diagnose, _hydra_ext, _words, effects, rules
from launcher.config._hydra_settings import NO_CODE, NOT_ALLOWED
from launcher.config.aliases import instead_of_key
from launcher.config.compose import (
    COMPOSITION_ERRORS,
    Composed,
    compose,
    compose_leniently,
    make_loader,
    parsed,
)
from launcher.config.paths import expand_home
from launcher.config.problems import leaves, merged
from launcher.config.schema import RunConfig
from launcher.contracts import GROUPS
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest_keys


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid config, and the composed values with their origins."""

    config: RunConfig
    composed: Composed

    @property
    def provenance(self) -> dict[str, str]:
        """Origin of every leaf: file and line, or word."""
        return self.composed.provenance()


def load_config(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dirs: Sequence[str | Path] = (),
) -> LoadedConfig:
    """Compose, validate and apply every rule.

    Args:
        overrides: Words in Hydra's override grammar.
        config_name: The primary config.
        config_dirs: The user's folders of YAML, searched before the packaged one.

    Raises:
        ConfigError: Every problem, with its key, its origin and a fix.
    """
    composed, problems = compose_leniently(overrides, config_name, config_dirs)
    if composed is None:
        raise ConfigError(problems)
    return validate(composed, problems)


def validate(composed: Composed, problems: Sequence[Problem] = ()) -> LoadedConfig:
    """Validate a composed config; raise ConfigError with its problems and those given."""
    found = list(problems)
    composed = composed.without_packaged_limit()
    try:
        config = RunConfig.from_mapping(composed.mapping)
        config = config.with_presets(composed.preset_values())
    except ConfigError as error:
        found = merged(problems, error.problems)
    else:
        found += rules.broken(config)
        found += effects.typed_without_effect(config, composed.origin)
        if not found:
            return LoadedConfig(config, composed)
    raise ConfigError(composed.attributed(found))


def sweep_jobs(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> list[list[str]]:
    """Return the overrides of every job of Hydra's basic sweeper.

    Empty for any other sweeper, whose jobs are not known in advance.
    """
    with _hydra_ext.search_path_of(config_dirs):
        loader = make_loader()
    # With the loader, `optimizer=glob(*)` finds the options.
    parser = OverridesParser.create(loader)
    words: list[Override] = []
    readable, problems = _words.readable(overrides, loader)
    for word in expand_home(readable):
        try:
            words += parser.parse_overrides([word])
        except COMPOSITION_ERRORS as error:
            problems.append(_diagnose.unparsable(word, error))
    if problems:
        raise ConfigError(problems)
    if any(word.key_or_group == "hydra/sweeper" and word.value() != "basic" for word in words):
        return []
    try:
        [grid] = BasicSweeper.split_arguments(words, max_batch_size=None)
    except COMPOSITION_ERRORS as error:
        raise ConfigError([Problem("", f"these words are no valid sweep: {error}")]) from error
    return [list(job) for job in grid]


def advice_for_flag(flag: str, value: str) -> str:
    """Return the override for a setting that was typed as a flag (`--lr`); "" if unknown."""
    key = flag.lstrip("-").replace("-", "_")
    if advice := instead_of_key(key, value):
        return advice
    known = [key for key, _ in leaves(compose(()).mapping)]
    found = [key] if key in {*GROUPS, "recipe", *known} else closest_keys(key, [*GROUPS, *known])
    words = [shlex.quote(f"{each}={value or 'VALUE'}") for each in found[:3]]
    return f"write {' or '.join(words)}" if words else ""


def refuse_code(
    overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]
) -> None:
    """Raise ConfigError if the config of a sweep of unknown jobs names code to run."""
    # Hydra builds the `hydra.callbacks` of a config before it composes the first job.
    with _hydra_ext.search_path_of(config_dirs):
        words, _ = parsed(overrides, make_loader())
    fixed = [str(word.input_line) for word in words]
    _, problems = compose_leniently(fixed, config_name, config_dirs)
    if named := [each for each in problems if each.message.startswith((NO_CODE, NOT_ALLOWED))]:
        raise ConfigError(named)


def load_jobs(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dirs: Sequence[str | Path] = (),
) -> list[LoadedConfig]:
    """Load every job of a multirun; raise ConfigError with the problems of all jobs."""
    # Before the first one starts: a mistake in the last job must not be found after a night. A
    # problem that several jobs share is reported once.
    passed = []
    problems: dict[Problem, None] = {}
    for job in sweep_jobs(overrides, config_dirs):
        try:
            passed.append(load_config(job, config_name, config_dirs))
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ConfigError(list(problems))
    return passed
