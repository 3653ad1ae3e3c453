"""A straight line between two learning rates."""

from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, WarmedUp
from launcher.scheduler._length import Length, resolve_positive


class LinearRamp(WarmedUp):
    """A straight line from one factor of the peak to another; then constant.

    Source: torch's `LinearLR`.
    """

    kind: Literal["linear_ramp"]
    start_factor: float = Field(ge=0, le=1e6)
    """First rate divided by the peak."""
    end_factor: float = Field(ge=0, le=1e6)
    """Last rate divided by the peak."""
    total_iters: Length | None
    """Steps from the first rate to the last; null: the run, without its warm-up."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        # torch's LinearLR multiplies the last rate; this form does not accumulate rounding errors.
        start, rise = self.start_factor, self.end_factor - self.start_factor
        steps = (
            max(1, horizon.max_steps - warmup)
            if self.total_iters is None
            else resolve_positive("total_iters", self.total_iters, horizon)
        )
        return Curve(peak_lr, lambda step: start + rise * min(steps, step) / steps)
