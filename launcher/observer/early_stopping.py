"""End of a run whose score no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Observer, ObserverOption, StepReport, Stop

if TYPE_CHECKING:
    from launcher.contracts import RunContext


class EarlyStopping(ObserverOption):
    """End the run normally when a validation score stops improving.

    A score that is not finite is no improvement. A resumed run continues the count of the
    checkpoint.
    """

    # A short run may end before its first evaluation, and would report these as without effect.
    read_on_event: ClassVar[frozenset[str]] = frozenset({"mode", "patience", "min_delta"})

    kind: Literal["early_stopping"]
    metric: str
    """Validation score to watch, as metrics.jsonl names it: `eval_loss`."""
    mode: Literal["min", "max"]
    """`min` if a lower score is better, `max` if a higher one is."""
    patience: int = Field(ge=1, le=10**12)
    """Evaluations in a row without an improvement after which the run ends."""
    min_delta: float = Field(ge=0, le=1e9)
    """Smallest difference from the best score that counts as an improvement."""

    @property
    @override
    def watches(self) -> Mapping[str, str]:
        return {self.metric: "metric"}

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        return [_EarlyStopping(self, context.start.observers)]


class _EarlyStopping(Observer):
    def __init__(self, option: EarlyStopping, memory: Mapping[str, float]) -> None:
        self._option = option
        # With the score in their names: the best of another score is no reference.
        self._best_key = f"early_stopping.best.{option.metric}"
        self._waited_key = f"early_stopping.waited.{option.metric}"
        self._best = memory.get(self._best_key)
        self._waited = int(memory.get(self._waited_key, 0))

    @override
    def __call__(self, report: StepReport) -> Stop | None:
        # Most steps have no evaluation: they count neither for nor against.
        if not report.scores:
            return None
        # The same on all ranks, so that all of them stop after the same step.
        score = report.scores[self._option.metric]
        if self._improves(score):
            self._best, self._waited = score, 0
            return None
        self._waited += 1
        if self._waited < self._option.patience:
            return None
        best = "never finite" if self._best is None else f"best {self._best:.4g}"
        return Stop(
            f"{self._option.metric} has not improved in {self._waited} evaluations ({best})"
        )

    @override
    def memory(self) -> Mapping[str, float]:
        best = {} if self._best is None else {self._best_key: self._best}
        return {**best, self._waited_key: self._waited}

    def _improves(self, score: float) -> bool:
        # Comparisons with NaN are false, and an infinite first score would be hard to improve on.
        if not math.isfinite(score):
            return False
        if self._best is None:
            return True
        gain = score - self._best if self._option.mode == "max" else self._best - score
        return gain > self._option.min_delta
