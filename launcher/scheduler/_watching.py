"""Schedules that answer to a score: what they have in common."""

import math
from abc import ABC
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Misfit
from launcher.errors import ConfigError, Problem
from launcher.scheduler._warmup import WarmedUp


class Watching(WarmedUp, ABC):
    """A schedule that moves when a validation score does. It is asked after each evaluation.

    What it remembers lies in the train state, so a resumed run goes on as if it had never stopped;
    the scores are over all ranks, so every rank moves alike. Evaluations during the warm-up do not
    count. A score that is not finite is no improvement.
    """

    read_on_event: ClassVar[frozenset[str]] = frozenset(
        {"mode", "factor", "threshold", "threshold_mode", "cooldown", "eps"}
    )

    metric: str
    """Which validation score, by the name that metrics.jsonl has for it: `eval_loss`."""
    mode: Literal["min", "max"]
    """Whether a lower or a higher score is better."""
    factor: float = Field(gt=0, lt=1)
    """The rate after a reduction over the rate before."""
    patience: int = Field(ge=0)
    """Evaluations without a change that are put up with; the next one moves the rate."""
    threshold: float = Field(ge=0)
    """By how much a score must be better than the best to count as better."""
    threshold_mode: Literal["rel", "abs"]
    """Whether `threshold` is a part of the best score or a difference from it."""
    cooldown: int = Field(ge=0)
    """Evaluations after a reduction that do not count."""
    min_lr: float = Field(ge=0)
    """Lowest learning rate. A parameter group with a rate of its own has it in proportion."""
    eps: float = Field(ge=0)
    """A change of the learning rate that is not larger than this is not made."""

    @property
    @override
    def watches(self) -> Mapping[str, str]:
        return {self.metric: "metric"}

    def score(self, scores: Mapping[str, float]) -> float:
        """The watched score.

        Raises:
            ConfigError: The evaluation has no such score.
        """
        try:
            return scores[self.metric]
        except KeyError:
            names = ", ".join(sorted(scores))
            problem = Problem(
                "scheduler.metric", f"the evaluation has no score {self.metric!r}; it has: {names}"
            )
            raise ConfigError([problem]) from None

    def improves(self, score: float, memory: Mapping[str, float]) -> bool:
        """Whether a score is better than the best so far by more than the threshold."""
        if "best" not in memory or not math.isfinite(score):
            return math.isfinite(score)
        best, sign = memory["best"], 1 if self.mode == "max" else -1
        relative = self.threshold_mode == "rel"
        bar = best * (1 + sign * self.threshold) if relative else best + sign * self.threshold
        return score > bar if self.mode == "max" else score < bar

    def floored(self, peak_lr: float) -> None:
        """Refuse a floor that would raise the rate.

        Raises:
            Misfit: `min_lr` is above the peak.
        """
        if self.min_lr > peak_lr:
            raise Misfit(
                "min_lr",
                f"must not be above the peak learning rate {peak_lr:g}, but is {self.min_lr:g}",
            )


def current(peak_lr: float, memory: Mapping[str, float]) -> float:
    """The rate that the memory holds; moved in proportion where the peak was changed on resume."""
    if "lr" not in memory:
        return peak_lr
    return memory["lr"] * (peak_lr / memory["peak_lr"])
