"""Compute derived values of a config, each only here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from typing_extensions import override

from launcher.contracts import BatchPlan, Horizon, OptimizerOption, Schedule, ScheduleError
from launcher.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.config.schema import RunConfig


def batch_plan(config: RunConfig) -> BatchPlan:
    """Return the batch plan: global batch = micro-batch size × micro-batches × ranks.

    Raises:
        ValueError: The numbers are inconsistent; `rules` reports this before a run starts.
    """
    layout = config.parallelism.layout(config.launch.ranks)
    return config.accumulation.plan(seq_len=config.task.seq_len, ranks=layout.data_ranks)


def resized(config: RunConfig, ranks: int) -> RunConfig:
    """Return the config on another number of ranks, with the same global batch.

    Raises:
        ConfigError: The run cannot have that number of ranks, or they cannot share the batch.
    """
    launch = config.launch.resized(ranks)
    if launch is None:
        message = f"the run has {config.launch.ranks} ranks, but {ranks} were started"
        raise ConfigError([Problem("launch", message)])
    if launch is config.launch:
        return config
    try:
        data_ranks = config.parallelism.layout(ranks).data_ranks
        accumulation = config.accumulation.resized(batch_plan(config), data_ranks)
        changed = config.model_copy(update={"launch": launch, "accumulation": accumulation})
        batch_plan(changed)
    except ValueError as error:
        message = f"the run cannot continue on {ranks} ranks with its global batch: {error}"
        raise ConfigError([Problem("accumulation", message)]) from error
    return changed


def peak_lr(config: RunConfig) -> float | None:
    """Return the learning rate that the schedule scales; None if the optimizer sets its own."""
    if config.scheduler.uses_optimizer_lr:
        return config.optimizer.lr
    return config.optimizer.peak_lr


def schedule(config: RunConfig, horizon: Horizon) -> Schedule:
    """Return the schedule of the run; raise ConfigError if it does not fit run or optimizer."""
    try:
        built = config.scheduler.build(peak_lr(config), horizon)
    except ScheduleError as error:
        raise ConfigError([Problem(f"scheduler.{error.field}", error.reason)]) from error
    except ValueError as error:
        raise ConfigError([Problem("scheduler", str(error))]) from error
    if built.lr(0, {}) is None and config.optimizer.own_lr(0) is not None:
        return _OwnLr(config.optimizer)
    return built


def max_samples(config: RunConfig, num_samples: int) -> int | None:
    """Return the samples of all epochs; None if no number of epochs is given."""
    if config.max_epochs is None:
        return None
    # A tenth of 30 samples is 3, not the 4 that 0.1 * 30 = 3.0000000000000004 would round up to.
    return max(1, math.ceil(round(config.max_epochs * num_samples, 6)))


def max_steps(config: RunConfig, num_samples: int) -> int:
    """Return the optimizer steps of the run: the first limit of `max_steps` and `max_epochs`."""
    samples = max_samples(config, num_samples)
    by_epochs = None if samples is None else -(-samples // batch_plan(config).samples_per_step)
    return min(steps for steps in (config.max_steps, by_epochs) if steps is not None)


def optimizer(config: RunConfig) -> OptimizerOption:
    """Return the optimizer with the learning rates of the adapter's groups."""
    return config.adapter.adjusted(config.optimizer)


def horizon(config: RunConfig, num_samples: int) -> Horizon:
    """Return the run's length, for schedules."""
    plan = batch_plan(config)
    return Horizon(
        max_steps=max_steps(config, num_samples),
        samples_per_step=plan.samples_per_step,
        tokens_per_step=plan.tokens_per_step,
        steps_per_epoch=num_samples / plan.samples_per_step,
    )


def horizon_before_data(config: RunConfig, num_samples: int | None) -> Horizon:
    """Return the run's length as far as it is known without the data.

    Args:
        config: The run.
        num_samples: Size of the training set; if None, `steps_per_epoch` is NaN.

    Raises:
        ConfigError: The length depends on the size of the training set, which is None.
    """
    if num_samples is not None:
        return horizon(config, num_samples)
    if config.max_epochs is not None or config.max_steps is None:
        raise ConfigError(
            [
                Problem(
                    "max_epochs",
                    f"is {config.max_epochs:g}, which has no known number of steps before the data "
                    "is read; give the size of the training set (--num-samples N)",
                )
            ]
        )
    plan = batch_plan(config)
    return Horizon(config.max_steps, plan.samples_per_step, plan.tokens_per_step, math.nan)


def length(config: RunConfig) -> str:
    """Return the run's length in words, as far as it is known without the data."""
    steps = None if config.max_steps is None else f"{config.max_steps:,} steps"
    epochs = None if config.max_epochs is None else _epochs(config.max_epochs)
    known = " or ".join(filter(None, [steps, epochs]))
    return f"{known}, whichever comes first" if steps and epochs else known


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"


class _OwnLr(Schedule):
    """The optimizer's own learning rate as a schedule, which is logged and scaled by group."""

    def __init__(self, optimizer: OptimizerOption) -> None:
        self._optimizer = optimizer

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float | None:
        return self._optimizer.own_lr(step)
