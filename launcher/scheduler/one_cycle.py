"""One cycle: up to the peak, then down, as in torch."""

import math
from itertools import pairwise
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule, ScheduleError
from launcher.scheduler._curves import Curve, WarmedUp


class OneCycle(WarmedUp):
    """Rise from a low rate to the peak, and fall to a much lower one on the last step.

    The cycle has its own rise; `warmup_steps` adds a ramp before it, and is usually 0.

    Source: torch's `OneCycleLR`; Smith and Topin 2017, arXiv:1708.07120.
    """

    kind: Literal["one_cycle"]
    pct_start: float = Field(gt=0, lt=1)
    """Fraction of the run in which the rate rises."""
    anneal_strategy: Literal["cos", "linear"]
    """Shape of each phase."""
    div_factor: float = Field(ge=1, le=1e12)
    """Peak divided by the first rate."""
    final_div_factor: float = Field(ge=1, le=1e12)
    """First rate divided by the last."""
    three_phase: bool
    """Fall to the first rate as fast as it rose, then on to the last; else fall in one phase."""

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        steps = horizon.max_steps - warmup
        cycle = self.cycle(peak_lr, steps)
        # Past the end torch raises an error; here the last rate stays.
        return Curve(peak_lr, lambda step: cycle.factor(min(step, steps - 1)))

    def cycle(self, peak_lr: float, steps: int) -> Curve:
        """Return the phases as one curve; raise ScheduleError if a phase has no length."""
        start = 1 / self.div_factor
        final = start / self.final_div_factor
        # Phases end on a step, not after it: subtract 1, as torch does.
        top = self.pct_start * steps - 1
        if self.three_phase:
            phases = [(top, start, 1.0), (2 * top, 1.0, start), (steps - 1, start, final)]
        else:
            phases = [(top, start, 1.0), (steps - 1, 1.0, final)]
        ends = [0.0, *(end for end, _, _ in phases)]
        if any(end <= begin for begin, end in pairwise(ends)):
            raise ScheduleError(
                "pct_start",
                f"is {self.pct_start:g}, so that the phases of {steps} steps end at "
                f"{', '.join(f'{end:g}' for end in ends[1:])}: each must be later than the one "
                "before, the first after 0; lengthen the run or change pct_start",
            )

        def factor(step: int) -> float:
            index = next((i for i, phase in enumerate(phases) if step <= phase[0]), -1)
            end, high, low = phases[index]
            begin = ends[:-1][index]
            return self._annealed(high, low, (step - begin) / (end - begin))

        return Curve(peak_lr, factor)

    def _annealed(self, start: float, end: float, progress: float) -> float:
        if self.anneal_strategy == "cos":
            return end + (start - end) / 2 * (math.cos(math.pi * progress) + 1)
        return (end - start) * progress + start
