"""The shape that most schedules share: a warm-up to the peak, then a curve of the steps since."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from typing_extensions import override

from launcher.contracts import Schedule

Factor = Callable[[int], float]
"""The learning rate over the peak, as a function of a number of steps."""


@dataclass(frozen=True, slots=True)
class Curve(Schedule):
    """Two pieces: `warmup` of the step before the warm-up's end, `after` of the steps since.

    Attributes:
        peak_lr: What both factors multiply.
        warmup_steps: Length of the first piece; 0 for none.
        warmup: Factor of the steps from 0 to `warmup_steps` - 1.
        after: Factor of the steps since the warm-up ended, from 0 on; defined past the run's end too.
    """

    peak_lr: float
    warmup_steps: int
    warmup: Factor
    after: Factor

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        past = step - self.warmup_steps
        return self.peak_lr * (self.warmup(step) if past < 0 else self.after(past))
