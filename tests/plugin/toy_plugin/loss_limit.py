"""End of a run at a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Observer, ObserverOption, RunContext, StepReport, Stop


class LossLimit(ObserverOption):
    """End the run normally when the loss was below a limit in some steps, not only by chance."""

    limit: float = Field(gt=0)
    """Mean loss of a window."""
    steps: int = Field(gt=0)
    """Number of steps."""

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        return [_Below(self, context.start.observers)]


class _Below(Observer):
    def __init__(self, option: LossLimit, memory: Mapping[str, float]) -> None:
        self._option = option
        self._below = int(memory.get("loss_limit.below", 0))

    @override
    def __call__(self, report: StepReport) -> Stop | None:
        self._below += report.loss.item() < self._option.limit
        if self._below < self._option.steps:
            return None
        return Stop(f"the loss was below {self._option.limit:g} in {self._below} steps")

    @override
    def memory(self) -> Mapping[str, float]:
        return {"loss_limit.below": self._below}
