"""Cosines that start again from the peak."""

import math
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, MinLrSchedule


class CosineWithRestarts(MinLrSchedule):
    """Several equal cosines from the peak to the minimum, each starting with a jump to the peak.

    Source: Transformers' `get_cosine_with_hard_restarts_schedule_with_warmup`.
    """

    kind: Literal["cosine_with_restarts"]
    num_cycles: int = Field(ge=1, le=10**6)
    """Number of cosines in the run."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        steps = max(1, horizon.max_steps - warmup)
        minimum, cycles = self.min_factor(peak_lr), self.num_cycles

        def factor(step: int) -> float:
            progress = step / steps
            # Without it the end of the run would be the start of another cosine.
            if progress >= 1:
                return minimum
            wave = 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1.0)))
            return wave * (1 - minimum) + minimum

        return Curve(peak_lr, factor)
