"""A cosine over the whole run."""

import math
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, MinLrSchedule


class Cosine(MinLrSchedule):
    """Fall from the peak along a cosine to the minimum, which the step after the last would have.

    Source: Transformers' `get_cosine_schedule_with_warmup` and
    `get_cosine_with_min_lr_schedule_with_warmup`.
    """

    kind: Literal["cosine"]
    num_cycles: float = Field(gt=0, le=1e6)
    """Waves of the cosine in the run: 0.5 falls once; 1.5 falls, rises and falls again."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        # A warm-up as long as the run leaves no step, and a division by zero.
        steps = max(1, horizon.max_steps - warmup)
        minimum, cycles = self.min_factor(peak_lr), self.num_cycles

        # As in Transformers, the cosine continues past the end of the run: it rises again.
        def factor(step: int) -> float:
            wave = 0.5 * (1 + math.cos(math.pi * cycles * 2 * step / steps))
            return wave * (1 - minimum) + minimum

        return Curve(peak_lr, factor)
