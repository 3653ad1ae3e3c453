"""Triangles between the minimum and the peak."""

import math
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Schedule
from launcher.scheduler._curves import Curve, MinLrSchedule
from launcher.scheduler._length import Length, resolve_positive


class Cyclic(MinLrSchedule):
    """Rise from the minimum to the peak and fall again, without an end.

    Source: torch's `CyclicLR`, whose `base_lr` is `min_lr` and whose `max_lr` is the optimizer's
    rate; Smith 2015, arXiv:1506.01186.
    """

    kind: Literal["cyclic"]
    step_size_up: Length
    """Steps from the minimum to the peak."""
    step_size_down: Length | None
    """Steps from the peak to the minimum; null: step_size_up."""
    mode: Literal["triangular", "triangular2", "exp_range"]
    """Height of the triangles: all the same; each half as high as the previous one; gamma ^
    step."""
    gamma: float = Field(gt=0, le=1)
    """Factor of the height per step in mode exp_range; 1 in the others."""

    @model_validator(mode="after")
    def _gamma_used(self) -> Self:
        if self.mode != "exp_range" and self.gamma != 1:
            raise ValueError(f"gamma must be 1 in mode {self.mode}, but is {self.gamma:g}")
        return self

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        return found if self.mode == "exp_range" else {**found, "gamma": f"mode is {self.mode}"}

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        minimum = self.min_factor(peak_lr)
        up = resolve_positive("step_size_up", self.step_size_up, horizon)
        down = (
            up
            if self.step_size_down is None
            else resolve_positive("step_size_down", self.step_size_down, horizon)
        )

        mode, gamma = self.mode, self.gamma

        def factor(step: int) -> float:
            # torch's formula: `place` is the position in the period, from 0 to 1.
            period = up + down
            cycle = math.floor(1 + step / period)
            place = 1 + step / period - cycle
            rise = up / period
            height = place / rise if place <= rise else (place - 1) / (rise - 1)
            if mode == "triangular2":
                height *= 0.5 ** (cycle - 1)
            elif mode == "exp_range":
                height *= gamma**step
            return minimum + (1 - minimum) * height

        return Curve(peak_lr, factor)
