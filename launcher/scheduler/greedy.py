"""Increase the rate while a score improves; reduce it when the score stops improving."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Schedule, ScheduleError
from launcher.scheduler._watching import Watching, current


class Greedy(Watching):
    """Divide by `factor` after a run of better scores, multiply by it after a run of worse ones.

    At the minimum it counts down and restarts from the peak.

    Source: Transformers' `GreedyLR` (`greedy`).
    """

    read_on_event: ClassVar[frozenset[str]] = Watching.read_on_event | {
        "warmup_evaluations",
        "reset_start",
    }

    kind: Literal["greedy"]
    max_lr: float = Field(gt=0, le=1e3)
    """Highest learning rate."""
    warmup_evaluations: int = Field(ge=0, le=10**12)
    """Evaluations after a rise that do not count; GreedyLR calls it `warmup`."""
    smooth: bool
    """Use the mean of the last finite scores instead of the last score."""
    window_size: int = Field(ge=1, le=10**6)
    """Number of scores in that mean."""
    reset_start: int = Field(ge=1, le=10**12)
    """Further reductions at the minimum before the schedule restarts from the peak."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        return found if self.smooth else {**found, "window_size": "smooth is false"}

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        self.check_min_lr(peak_lr)
        if self.max_lr < peak_lr:
            raise ScheduleError(
                "max_lr",
                f"must not be below the optimizer's learning rate {peak_lr:g}, "
                f"but is {self.max_lr:g}",
            )
        return GreedyClimb(peak_lr, self)


@dataclass(frozen=True, slots=True)
class GreedyClimb(Schedule):
    """The rate in the memory, and its change by a score."""

    # The memory: `lr`, and the `peak_lr` for which it was computed; the `best` score; evaluations
    # in a row that were `good` or `bad`; evaluations to ignore, `cooldown` and `pause`; reductions
    # left until the reset, `left`; the last scores, `score.0` the oldest.

    peak_lr: float
    option: Greedy

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        return current(self.peak_lr, memory)

    @override
    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        option = self.option
        new = {"good": 0.0, "bad": 0.0, "cooldown": 0.0, "pause": 0.0, "left": option.reset_start}
        new |= {**memory, "lr": current(self.peak_lr, memory), "peak_lr": self.peak_lr}
        score = option.score(scores)
        # One score that is not finite must not count against all whose mean it would be in.
        if option.smooth and math.isfinite(score):
            score = self._smoothed(new, score)
        # In GreedyLR's order: evaluations in a cooldown do not shorten the pause after a rise.
        for wait in ("cooldown", "pause"):
            if new[wait] > 0:
                return new | {wait: new[wait] - 1, "good": 0, "bad": 0}
        if option.improves(score, new):
            new |= {"best": score, "good": new["good"] + 1, "bad": 0}
        else:
            new |= {"good": 0, "bad": new["bad"] + 1}
        if new["good"] > option.patience:
            self._rise(new)
        elif new["bad"] > option.patience:
            return self._fall(new)
        return new

    def _smoothed(self, new: dict[str, float], score: float) -> float:
        # Scores as numbers with a key each: the memory holds nothing else.
        window = [new[f"score.{i}"] for i in range(self.option.window_size) if f"score.{i}" in new]
        window = [*window, score][-self.option.window_size :]
        new |= {f"score.{i}": value for i, value in enumerate(window)}
        return sum(window) / len(window)

    def _rise(self, new: dict[str, float]) -> None:
        option, lr = self.option, new["lr"]
        higher = min(lr / option.factor, option.max_lr)
        new |= {
            "lr": higher if higher - lr > option.eps else lr,
            "left": option.reset_start,
            "pause": option.warmup_evaluations,
            "good": 0,
        }

    def _fall(self, new: dict[str, float]) -> dict[str, float]:
        option, lr = self.option, new["lr"]
        lower = max(lr * option.factor, option.min_lr)
        lr = lower if lr - lower > option.eps else lr
        new |= {"lr": lr, "cooldown": option.cooldown, "bad": 0}
        if lr <= option.min_lr:
            new["left"] -= 1
            # GreedyLR forgets everything, then sets the cooldown of the reduction that led here.
            if new["left"] <= 0:
                return {"lr": self.peak_lr, "peak_lr": self.peak_lr, "cooldown": option.cooldown}
        return new
