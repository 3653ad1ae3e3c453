"""The schedule that does not move."""

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, WarmedUp


class Constant(WarmedUp):
    """One learning rate for the whole run, after a warm-up if there is one.

    Source: Transformers' `get_constant_schedule` and `get_constant_schedule_with_warmup`.
    """

    is_constant: ClassVar[bool] = True

    kind: Literal["constant"]
    factor: float = Field(ge=0, le=1e6)
    """Learning rate divided by the peak: 1, except in the stages of a `sequence`."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        factor = self.factor
        return Curve(peak_lr, lambda _: factor)
