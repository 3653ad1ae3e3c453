"""A cosine with a period of its own."""

import math
from typing import Literal

from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, MinLrSchedule
from launcher.scheduler._length import Length, resolve_positive


class CosineAnnealing(MinLrSchedule):
    """Fall along a cosine to the minimum in T_max steps, rise in as many, and so on.

    Source: torch's `CosineAnnealingLR`, whose `eta_min` is `min_lr`; Loshchilov and Hutter 2017,
    arXiv:1608.03983, equation 5 without restarts.
    """

    kind: Literal["cosine_annealing"]
    T_max: Length | None
    """Steps from the peak to the minimum; null: the run, without its warm-up."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        minimum = self.min_factor(peak_lr)
        half = (
            max(1, horizon.max_steps - warmup)
            if self.T_max is None
            else resolve_positive("T_max", self.T_max, horizon)
        )

        # The closed form, not torch's recursion over steps: any step without the ones before it.
        def factor(step: int) -> float:
            return minimum + (1 - minimum) * (1 + math.cos(math.pi * step / half)) / 2

        return Curve(peak_lr, factor)
