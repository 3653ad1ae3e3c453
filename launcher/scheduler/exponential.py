"""Exponential decay or growth of the learning rate."""

import math
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule, ScheduleError
from launcher.scheduler._curves import Curve, WarmedUp
from launcher.scheduler._length import Length, resolve_positive


class Exponential(WarmedUp):
    """The peak times gamma ^ (step / decay_steps), which changes on every step.

    With `gamma` above 1 it rises: a learning-rate range test.

    Source: torch's `ExponentialLR`, whose `decay_steps` is 1.
    """

    kind: Literal["exponential"]
    gamma: float = Field(gt=0, le=1e3)
    """Factor per `decay_steps`."""
    decay_steps: Length
    """Steps that multiply the rate by gamma once."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        period = resolve_positive("decay_steps", self.decay_steps, horizon)
        steps = horizon.max_steps - warmup
        # Found now, not in the step of a long run that overflows.
        try:
            _ = peak_lr * self.gamma ** (steps / period)
        except OverflowError:
            raise ScheduleError(
                "gamma",
                f"is {self.gamma:g} every {period} steps, no finite number after {steps}; make "
                "it smaller or decay_steps longer",
            ) from None
        # Past the end of the run a rising rate stays: nobody checked that it is finite there.
        end = steps if self.gamma > 1 else math.inf
        return Curve(peak_lr, lambda step: self.gamma ** (min(step, end) / period))
