"""Reductions at equal intervals."""

from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule, ScheduleError
from launcher.scheduler._curves import Curve, WarmedUp
from launcher.scheduler._length import Length, describe, resolve_positive


class Step(WarmedUp):
    """The peak, multiplied by `gamma` each time `step_size` steps have passed.

    Source: torch's `StepLR`.
    """

    kind: Literal["step"]
    step_size: Length
    """Steps on one level, counted from the end of the warm-up."""
    gamma: float = Field(gt=0, le=1)
    """Factor from one level to the next."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        size = resolve_positive("step_size", self.step_size, horizon)
        steps = horizon.max_steps - warmup
        if size > steps:
            raise ScheduleError(
                "step_size",
                f"is {describe(self.step_size, size)}, but the run has {steps} steps after its "
                "warm-up: the rate would never fall; shorten step_size or choose constant",
            )
        # torch multiplies the last rate; a power gives any step without the ones before it.
        gamma = self.gamma
        return Curve(peak_lr, lambda step: gamma ** (step // size))
