"""A power of the remaining fraction of the run."""

from typing import Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import Horizon, Schedule, ScheduleError
from launcher.scheduler._curves import Curve, WarmedUp, factor_of_peak, refuse_both


class Polynomial(WarmedUp):
    """Fall from the peak to an end value, one step after the last, as a power of the time left.

    Source: Transformers' `get_polynomial_decay_schedule_with_warmup`; with `lr_end_ratio` the
    `create_optimizer` of Transformers for TensorFlow; torch's `PolynomialLR` with `lr_end` 0.
    """

    kind: Literal["polynomial"]
    lr_end: float | None = Field(ge=0, le=1e3)
    """Learning rate at the end, below the peak; null if lr_end_ratio sets it. Both null: 0."""
    lr_end_ratio: float | None = Field(ge=0, lt=1)
    """Learning rate at the end divided by the peak; null if lr_end sets it."""
    power: float = Field(gt=0, le=1e3)
    """Exponent: 1 is a straight line, 2 falls faster at the start, 0.5 falls faster at the end."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        refuse_both("lr_end", self.lr_end, "lr_end_ratio", self.lr_end_ratio)
        return self

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        steps, power = horizon.max_steps - warmup, self.power
        end = factor_of_peak("lr_end", self.lr_end, self.lr_end_ratio, peak_lr)
        # Transformers refuses it too: the schedule would be constant.
        if end == 1:
            raise ScheduleError(
                "lr_end",
                f"must be below the peak learning rate {peak_lr:g}, but is {self.lr_end:g}",
            )

        def factor(step: int) -> float:
            if step >= steps:
                return end
            height: float = (1 - step / steps) ** power
            return (1 - end) * height + end

        return Curve(peak_lr, factor)
