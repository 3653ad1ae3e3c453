"""What of a schedule can only be checked once the data is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from launcher.config import derive
from launcher.errors import ConfigError, Problem

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig


def check_schedule(config: RunConfig, num_samples: int, scores: Iterable[str]) -> None:
    """Refuse a schedule whose lengths do not fit the run, or that watches a score nobody makes.

    Args:
        config: The run.
        num_samples: Size of the training set.
        scores: Names of the scores of an evaluation.

    Raises:
        ConfigError: Before hours of training were spent on it.
    """
    try:
        derive.schedule(config, derive.horizon(config, num_samples))
    except ValueError as error:
        raise ConfigError([derive.misfit(error)]) from error
    names = sorted(scores)
    if unknown := sorted(config.scheduler.watches - set(names)):
        key = "scheduler.metric" if hasattr(config.scheduler, "metric") else "scheduler"
        message = f"watches {', '.join(unknown)}, but an evaluation has: {', '.join(names)}"
        raise ConfigError([Problem(key, message)])
