"""The one door between the two worlds: command line and YAML on this side, a RunConfig on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from launcher.config import diagnose, hydra_ext, rules
from launcher.config.compose import COMPOSITION_ERRORS, Composed, compose_leniently, make_loader
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Checked:
    """A config that may run.

    Attributes:
        config: The config.
        composed: What it was validated from.
    """

    config: RunConfig
    composed: Composed

    @property
    def provenance(self) -> dict[str, str]:
        """For every leaf, the file and line or the word that set it."""
        return self.composed.provenance()


def checked(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dirs: Sequence[str | Path] = (),
) -> Checked:
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
    return validated(composed, problems)


def validated(composed: Composed, problems: Sequence[Problem] = ()) -> Checked:
    """Validate what was composed.

    Args:
        composed: The config.
        problems: What was wrong with it already.

    Raises:
        ConfigError: Those problems and all others.
    """
    found = list(problems)
    told = {problem.key for problem in problems}
    try:
        config = RunConfig.from_mapping(composed.mapping)
    except ConfigError as error:
        found += [problem for problem in error.problems if problem.key not in told]
    else:
        found += rules.broken(config)
        if not found:
            return Checked(config, composed)
    raise ConfigError(
        [p if p.origin else replace(p, origin=composed.origin(p.key) if p.key else "") for p in found]
    )


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a multirun: the grid that Hydra's basic sweeper makes.

    Raises:
        ConfigError: A word is not in the grammar, or has values that cannot be listed.
    """
    parser = OverridesParser.create(make_loader_here())
    words: list[Any] = []
    problems = []
    for word in overrides:
        try:
            words += parser.parse_overrides([word])
        except COMPOSITION_ERRORS as error:
            problems.append(diagnose.unparsable(word, error))
    if problems:
        raise ConfigError(problems)
    try:
        [grid] = BasicSweeper.split_arguments(words, max_batch_size=None)
    except COMPOSITION_ERRORS as error:
        raise ConfigError([Problem("", f"these words make no grid: {error}")]) from error
    return [list(job) for job in grid]


def make_loader_here() -> Any:
    """Globs such as `optimizer=glob(*)` look options up."""
    with hydra_ext.search_path_of(()):
        return make_loader()
