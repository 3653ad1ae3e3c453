"""The shapes that schedules are made of: a curve of the step, and a ramp in front of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from typing_extensions import override

from launcher.contracts import Schedule

Factor = Callable[[int], float]
"""The learning rate over the peak, as a function of the step."""


@dataclass(frozen=True, slots=True)
class Curve(Schedule):
    """A factor of the peak.

    Attributes:
        peak_lr: What the factor multiplies.
        factor: Defined for every step from 0 on, past the end of the run too.
    """

    peak_lr: float
    factor: Factor

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        return self.peak_lr * self.factor(step)


@dataclass(frozen=True, slots=True)
class Ramp(Schedule):
    """A warm-up, then another schedule whose step 0 is where the warm-up ends.

    Attributes:
        warmup: The curve of the steps from 0 to `steps` - 1.
        steps: Length of the warm-up.
        then: What follows. It learns nothing of evaluations during the warm-up.
    """

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
        if step <= self.steps:
            return memory
        return self.then.observe(memory, scores, step - self.steps)
