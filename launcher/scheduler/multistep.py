"""Reductions at chosen steps."""

from bisect import bisect_right
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule, ScheduleError
from launcher.scheduler._curves import Curve, WarmedUp
from launcher.scheduler._length import Length, describe, not_empty, resolve


class Multistep(WarmedUp):
    """The peak, multiplied by `gamma` at each milestone; a milestone named twice counts twice.

    Source: torch's `MultiStepLR`.
    """

    kind: Literal["multistep"]
    milestones: Annotated[tuple[Length, ...], AfterValidator(not_empty)]
    """Steps from which the next level holds, counted from the end of the warm-up."""
    gamma: float = Field(gt=0, le=1)
    """Factor from one level to the next."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        steps = horizon.max_steps - warmup
        milestones = [resolve("milestones", milestone, horizon) for milestone in self.milestones]
        for written, milestone in zip(self.milestones, milestones, strict=True):
            if milestone > steps:
                raise ScheduleError(
                    "milestones",
                    f"has {describe(written, milestone)}, which is never reached: the run has "
                    f"{steps} steps after its warm-up; remove it or lengthen the run",
                )
        # Milestones in different units need not be in the order of their steps.
        milestones.sort()
        gamma = self.gamma
        return Curve(peak_lr, lambda step: gamma ** bisect_right(milestones, step))
