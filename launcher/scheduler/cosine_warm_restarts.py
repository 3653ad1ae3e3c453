"""Cosines that start again, each longer than the one before."""

import math
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, MinLrSchedule
from launcher.scheduler._length import Length, resolve_positive


class CosineWarmRestarts(MinLrSchedule):
    """Fall along a cosine from the peak to the minimum, then again from the peak, and so on.

    Source: torch's `CosineAnnealingWarmRestarts`, whose `eta_min` is `min_lr`; Loshchilov and
    Hutter 2017, arXiv:1608.03983, equation 5.
    """

    kind: Literal["cosine_warm_restarts"]
    T_0: Length
    """Length of the first cosine."""
    T_mult: int = Field(ge=1, le=10**6)
    """Length of each cosine over that of the one before."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        minimum, growth = self.min_factor(peak_lr), self.T_mult
        first = resolve_positive("T_0", self.T_0, horizon)

        def factor(step: int) -> float:
            length = first
            # The loop below would take as many turns as there were restarts.
            if growth == 1:
                step %= length
            while step >= length:
                step -= length
                length *= growth
            return minimum + (1 - minimum) * (1 + math.cos(math.pi * step / length)) / 2

        return Curve(peak_lr, factor)
