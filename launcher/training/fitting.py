"""Checks that need more than the config: the columns of the data, the length of the schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from launcher.config import derive
from launcher.contracts import DataSplits, Task
from launcher.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig


def check_columns(config: RunConfig, splits: DataSplits, task: Task) -> None:
    """Refuse records that lack a column of the task.

    Raises:
        DataError: Names the source, its columns, and the missing ones.
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, records in parts.items():
        if records is None:
            continue
        if missing := [column for column in task.columns if column not in records.columns]:
            raise DataError(
                f"task={config.task.kind} needs the columns {', '.join(task.columns)}, but the "
                f"{name} part of data={config.data.kind} has no {', '.join(missing)} (it has: "
                f"{', '.join(records.columns) or 'none'}); choose another data or task"
            )


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
