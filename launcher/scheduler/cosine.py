"""A cosine over the whole run."""

import math
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon
from launcher.scheduler._curve import Factor
from launcher.scheduler._floor import Floored


class Cosine(Floored):
    """From the peak along a cosine to the floor, which would be reached one step after the last.

    Past the end of the run the cosine goes on, and rises again. Source: Transformers'
    `get_cosine_schedule_with_warmup` and `get_cosine_with_min_lr_schedule_with_warmup`.
    """

    kind: Literal["cosine"]
    """Fall along a cosine to the floor."""
    num_cycles: float = Field(gt=0)
    """Waves of the cosine in the run: 0.5 falls once; 1.5 falls, rises and falls again."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Factor:
        steps = max(1, horizon.max_steps - warmup)
        floor = self.floor(peak_lr)

        def factor(step: int) -> float:
            wave = 0.5 * (1 + math.cos(math.pi * self.num_cycles * 2 * step / steps))
            return max(0.0, wave * (1 - floor) + floor)

        return factor
