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
    """A valid config, and where its values come from.

    Attributes:
        config: The config.
        composed: What it was validated from.
    """

    config: RunConfig
    composed: Composed

    @property
    def provenance(self) -> dict[str, str]:
        """Origin of every leaf: the file and line, or the word, that set it."""
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
        ConfigError: Everything that is wrong, with its key, what to do, and who set it.
    """
    composed, problems = compose_leniently(overrides, config_name, config_dirs)
    if composed is None:
        raise ConfigError(problems)
    return validate(composed, problems)


def validate(composed: Composed, problems: Sequence[Problem] = ()) -> LoadedConfig:
    """Validate what was composed.

    Args:
        composed: The config.
        problems: What was wrong with it already.

    Raises:
        ConfigError: Those problems and all others.
    """
    found = list(problems)
    composed = composed.without_packaged_limit()
    try:
        config = RunConfig.from_mapping(composed.mapping)
        config = config.with_presets(composed.preset_values())
    except ConfigError as error:
        found = merged(problems, error.problems)
    else:
        found += rules.broken(config)
        found += effects.typed_in_vain(config, composed.origin)
        if not found:
            return LoadedConfig(config, composed)
    raise ConfigError(composed.attributed(found))


def sweep_jobs(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> list[list[str]]:
    """The overrides of every job of a multirun: the grid that Hydra's basic sweeper makes.

    Args:
        overrides: Words in Hydra's grammar, some with several values.
        config_dirs: The user's folders; `optimizer=glob(*)` looks options up.

    Returns:
        Empty when another sweeper is chosen: its jobs are not known in advance.

    Raises:
        ConfigError: A word is not in the grammar, or has values that cannot be listed.
    """
    with _hydra_ext.search_path_of(config_dirs):
        loader = make_loader()
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
    """Return what to write for a setting that was given as a flag, as other tools take it.

    Args:
        flag: With its hyphens.
        value: What follows it; "" where nothing does.
    """
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
    """Refuse code in the config of a sweep whose jobs are not known in advance.

    Hydra builds the `hydra.callbacks` of a config before the config of any job is validated.

    Raises:
        ConfigError: A file or a word names code to run.
    """
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
    """Every job of a multirun, checked before the first one starts.

    Raises:
        ConfigError: What is wrong with any of them; a problem that several share is named once.
    """
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
