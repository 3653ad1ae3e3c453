"""The cosine whose warm-up and decay both start one step early."""

import math
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, Factor, MinLrSchedule


class CosineWarmupWithMinLr(MinLrSchedule):
    """A warm-up that does not begin at 0, then a cosine that is at the minimum on the last step.

    Source: Transformers' `get_cosine_with_min_lr_schedule_with_warmup_lr_rate`.
    """

    kind: Literal["cosine_warmup_with_min_lr"]
    num_cycles: float = Field(gt=0, le=1e6)
    """Waves of the cosine in the run: 0.5 falls once; 1.5 falls, rises and falls again."""
    warmup_lr_rate: float | None = Field(ge=0, le=1)
    """Learning rate of the first step divided by the peak; null: 1 / warmup_steps."""

    @override
    def ramp(self, peak_lr: float, warmup: int) -> Factor:
        # Unlike other warm-ups, this one is at the peak on its last step, not after it.
        start, power = self.warmup_lr_rate, self.warmup_power
        if start is None:
            return lambda step: float(((step + 1) / warmup) ** power)
        rise = 1 - start
        return lambda step: float(start + rise * (step / max(1, warmup - 1)) ** power)

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        steps = max(1, horizon.max_steps - warmup)
        minimum, cycles = self.min_factor(peak_lr), self.num_cycles

        # The cosine counts from step + 1; past the end of the run it rises again.
        def factor(step: int) -> float:
            wave = 0.5 * (1 + math.cos(math.pi * cycles * 2 * (step + 1) / steps))
            return wave * (1 - minimum) + minimum

        return Curve(peak_lr, factor)
