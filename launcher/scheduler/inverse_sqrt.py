"""A schedule that does not depend on the length of the run."""

import math
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule, ScheduleError
from launcher.scheduler._curves import Curve, WarmedUp
from launcher.scheduler._length import Length, resolve_positive


class InverseSqrt(WarmedUp):
    """Decay in proportion to 1 / sqrt(step), which needs no end of the run.

    The factor of step t of the run is sqrt(timescale / (t + shift)).

    Source: Transformers' `get_inverse_sqrt_schedule`; Zhai et al. 2022, arXiv:2106.04560.
    """

    kind: Literal["inverse_sqrt"]
    timescale: Length | None
    """Time scale in steps: each time the number of steps is multiplied by four, the rate halves.
    Null: warmup_steps, or 10000 without a warm-up."""
    shift: int | None = Field(ge=-(10**12), le=10**12)
    """Steps added to the step; null: timescale - warmup_steps, so that the decay starts at the
    peak."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        if self.timescale is None:
            # Transformers' defaults.
            timescale = warmup or 10_000
        else:
            timescale = resolve_positive("timescale", self.timescale, horizon)
        shift = timescale - warmup if self.shift is None else self.shift
        first = warmup + shift
        if first < 1:
            raise ScheduleError(
                "shift",
                f"is {shift}; warmup_steps {warmup} + shift must be at least 1, not {first}",
            )
        return Curve(peak_lr, lambda step: 1 / math.sqrt((step + first) / timescale))
