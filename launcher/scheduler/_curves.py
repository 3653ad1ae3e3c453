"""Base classes of schedules: a curve, a warm-up before it, a minimum learning rate."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Schedule, ScheduleError, SchedulerOption
from launcher.scheduler._length import Length, describe, is_zero, resolve

# Learning rate divided by the peak, for every step from 0 on, past the end of the run too.
Factor = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Curve(Schedule):
    """A factor of the peak."""

    peak_lr: float
    factor: Factor

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        return self.peak_lr * self.factor(step)


@dataclass(frozen=True, slots=True)
class Ramp(Schedule):
    """A warm-up of `steps` steps, then another schedule whose step 0 is where the warm-up ends."""

    warmup: Curve
    steps: int
    then: Schedule

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float | None:
        if step < self.steps:
            return self.warmup.lr(step, memory)
        return self.then.lr(step - self.steps, memory)

    @override
    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        # During the warm-up the rate is not that of the schedule.
        if step <= self.steps:
            return memory
        return self.then.observe(memory, scores, step - self.steps)


class WarmedUp(SchedulerOption):
    """A schedule that starts with a ramp from 0 to the peak; its own step 0 is where the ramp ends.

    Source: Transformers' `WarmUp` for TensorFlow; with power 1 the warm-up of `get_scheduler`.
    """

    warmup_steps: Length
    """Length of the ramp to the peak: steps, a fraction of the run, or an amount with its unit."""
    warmup_power: float = Field(gt=0, le=1e3)
    """Exponent of the ramp: 1 is a straight line, 2 starts slowly, 0.5 starts fast."""

    @abstractmethod
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        """Build the schedule of the steps after the warm-up; `horizon` is of the whole run.

        Raises:
            ScheduleError: Lengths or rates do not fit each other.
        """

    def ramp(self, peak_lr: float, warmup: int) -> Factor:
        """Return the warm-up as a factor of the peak, for the steps from 0 to `warmup` - 1."""
        del peak_lr
        power = self.warmup_power
        return lambda step: float((step / warmup) ** power)

    def joined(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        """Build warm-up and schedule, also for a warm-up that is longer than the run."""
        then = self.after_warmup(peak_lr, warmup, horizon)
        return Ramp(Curve(peak_lr, self.ramp(peak_lr, warmup)), warmup, then) if warmup else then

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if not is_zero(self.warmup_steps):
            return found
        return {**found, "warmup_power": "warmup_steps is 0"}

    @override
    def build(self, peak_lr: float | None, horizon: Horizon) -> Schedule:
        if peak_lr is None:
            raise ScheduleError(
                "kind",
                f"{self.kind} scales the optimizer's learning rate, but optimizer.lr is null: the "
                "optimizer sets its own; choose scheduler=adafactor, or give optimizer.lr",
            )
        warmup = resolve("warmup_steps", self.warmup_steps, horizon)
        if warmup > horizon.max_steps:
            raise ScheduleError(
                "warmup_steps",
                f"is {describe(self.warmup_steps, warmup)}, but the whole run has "
                f"{horizon.max_steps} steps; shorten the warm-up or lengthen the run",
            )
        return self.joined(peak_lr, warmup, horizon)


class MinLrSchedule(WarmedUp):
    """A schedule with a minimum: `min_lr`, or `min_lr_ratio` of the peak, or 0."""

    min_lr: float | None = Field(ge=0, le=1e3)
    """Minimum learning rate; null if min_lr_ratio gives it. Both null: 0. For a parameter group
    with its own learning rate it is in proportion."""
    min_lr_ratio: float | None = Field(ge=0, le=1)
    """Minimum learning rate over the peak; null if min_lr gives it."""

    @model_validator(mode="after")
    def _one_minimum(self) -> Self:
        refuse_both("min_lr", self.min_lr, "min_lr_ratio", self.min_lr_ratio)
        return self

    def min_factor(self, peak_lr: float) -> float:
        """Return the minimum learning rate over the peak; ScheduleError if it is above the peak."""
        return factor_of_peak("min_lr", self.min_lr, self.min_lr_ratio, peak_lr)


def refuse_both(name: str, rate: float | None, ratio_name: str, ratio: float | None) -> None:
    """Raise ValueError if a minimum is given as a rate and as a ratio."""
    if rate is not None and ratio is not None:
        raise ValueError(
            f"{name} {rate:g} and {ratio_name} {ratio:g} both give the lowest learning rate; "
            "set one of them to null"
        )


def factor_of_peak(name: str, rate: float | None, ratio: float | None, peak_lr: float) -> float:
    # A factor, so that parameter groups with their own peak keep the proportion.
    if not rate:
        return ratio or 0.0
    if rate > peak_lr:
        raise ScheduleError(
            name, f"must not be above the peak learning rate {peak_lr:g}, but is {rate:g}"
        )
    return rate / peak_lr
