"""Base class of schedules that react to a validation score."""

import math
from abc import ABC
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ScheduleError
from launcher.errors import ConfigError, Problem
from launcher.scheduler._curves import WarmedUp


class Watching(WarmedUp, ABC):
    """A schedule that changes the rate after evaluations, by a validation score.

    Evaluations during the warm-up do not count. A score that is not finite is no improvement.
    """

    read_on_event: ClassVar[frozenset[str]] = frozenset(
        {"mode", "factor", "threshold", "threshold_mode", "cooldown", "eps"}
    )

    metric: str
    """Validation score, by its name in metrics.jsonl: `eval_loss`."""
    mode: Literal["min", "max"]
    """`min` if a lower score is better, `max` if a higher one is."""
    factor: float = Field(gt=0, lt=1)
    """Rate after a reduction divided by the rate before it."""
    patience: int = Field(ge=0, le=10**12)
    """Evaluations without improvement that are tolerated; the next one changes the rate."""
    threshold: float = Field(ge=0, le=1e9)
    """Smallest difference from the best score that counts as an improvement."""
    threshold_mode: Literal["rel", "abs"]
    """`rel`: `threshold` is a fraction of the best score; `abs`: an absolute difference."""
    cooldown: int = Field(ge=0, le=10**12)
    """Evaluations after a reduction that do not count."""
    min_lr: float = Field(ge=0, le=1e3)
    """Minimum learning rate, in proportion for a parameter group with its own learning rate."""
    eps: float = Field(ge=0, le=1e3)
    """Changes of the learning rate up to this size are ignored."""

    @property
    @override
    def watches(self) -> Mapping[str, str]:
        return {self.metric: "metric"}

    def score(self, scores: Mapping[str, float]) -> float:
        """Return the watched score; raise ConfigError if the evaluation has none of that name."""
        # The score is over all ranks, so that all of them change the rate in the same step.
        try:
            return scores[self.metric]
        except KeyError:
            names = ", ".join(sorted(scores))
            problem = Problem(
                "scheduler.metric", f"the evaluation has no score {self.metric!r}; it has: {names}"
            )
            raise ConfigError([problem]) from None

    def improves(self, score: float, memory: Mapping[str, float]) -> bool:
        """Return True if a score is better than the best so far by more than the threshold."""
        # The first score is the best so far, unless it could never be improved on.
        if "best" not in memory or not math.isfinite(score):
            return math.isfinite(score)
        best, sign = memory["best"], 1 if self.mode == "max" else -1
        relative = self.threshold_mode == "rel"
        # As torch's ReduceLROnPlateau: a relative threshold has the wrong sign for negative scores.
        bar = best * (1 + sign * self.threshold) if relative else best + sign * self.threshold
        return score > bar if self.mode == "max" else score < bar

    def check_min_lr(self, peak_lr: float) -> None:
        """Raise ScheduleError if `min_lr` is above the peak."""
        if self.min_lr > peak_lr:
            raise ScheduleError(
                "min_lr",
                f"must not be above the peak learning rate {peak_lr:g}, but is {self.min_lr:g}",
            )


def current(peak_lr: float, memory: Mapping[str, float]) -> float:
    """Return the saved rate, scaled if the peak was changed on resume."""
    # The saved rate alone would make a change of optimizer.lr on resume have no effect.
    if "lr" not in memory:
        return peak_lr
    return memory["lr"] * (peak_lr / memory["peak_lr"])
