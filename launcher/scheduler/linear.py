"""A straight line down to 0."""

from typing import Literal

from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, WarmedUp


class Linear(WarmedUp):
    """Fall in a straight line from the peak to 0, one step after the last.

    Source: Transformers' `get_linear_schedule_with_warmup`.
    """

    kind: Literal["linear"]

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        # Zero one step after the last, as in Transformers: the last step still trains.
        steps = horizon.max_steps - warmup
        return Curve(peak_lr, lambda step: max(0.0, (steps - step) / max(1, steps)))
