"""Warm-up, constant rate, decay."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Schedule, ScheduleError
from launcher.scheduler._curves import Curve, Factor, MinLrSchedule
from launcher.scheduler._length import Length, describe, resolve

Shape = Literal["linear", "cosine", "1-sqrt"]

_RISES: Mapping[Shape, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1 - math.sqrt(1 - progress),
}


class WarmupStableDecay(MinLrSchedule):
    """A warm-up from the minimum, a constant phase at the peak, a decay to the minimum.

    The decay ends with the run unless `stable_steps` or `decay_start` is set. To decay from a
    checkpoint of step k, resume with decay_start=k and max_steps=k + decay_steps; the steps before
    k keep their rates unless warmup_steps is a fraction of the run.

    Source: Transformers' `get_wsd_schedule`; Hu et al. 2024, arXiv:2404.06395 (MiniCPM); the
    1-sqrt decay: Hägele et al. 2024, arXiv:2405.18392.
    """

    kind: Literal["warmup_stable_decay"]
    decay_steps: Length
    """Length of the decay."""
    stable_steps: Length | None
    """Length of the constant phase; null: what warm-up and decay leave."""
    decay_start: Length | None
    """Step of the run on which the decay begins, as an alternative to stable_steps; null if
    stable_steps sets it."""
    warmup_type: Shape
    """Shape of the warm-up: `linear`, `cosine` (slow at both ends), `1-sqrt` (slow at first)."""
    decay_type: Shape
    """Shape of the decay: `linear`, `cosine`, `1-sqrt` (fast at first)."""
    num_cycles: float = Field(gt=0, le=1e6)
    """Waves of a cosine decay: 0.5 falls once."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.stable_steps is not None and self.decay_start is not None:
            raise ValueError(
                f"stable_steps {self.stable_steps} and decay_start {self.decay_start} both "
                "set the start of the decay; set one of them to null"
            )
        return self

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = dict(super().not_applicable(config))
        if "warmup_power" in found:
            found["warmup_type"] = found["warmup_power"]
        if self.decay_type != "cosine":
            found["num_cycles"] = f"decay_type is {self.decay_type}"
        return found

    @override
    def ramp(self, peak_lr: float, warmup: int) -> Factor:
        # From the minimum, not from 0 as in other kinds: so does `get_wsd_schedule`.
        minimum = self.min_factor(peak_lr)
        rise, power = _RISES[self.warmup_type], self.warmup_power

        def factor(step: int) -> float:
            height = rise((step / warmup) ** power)
            return height * (1 - minimum) + minimum

        return factor

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        decay = resolve("decay_steps", self.decay_steps, horizon)
        return self.level_then_down(peak_lr, self._stable(warmup, decay, horizon), decay)

    def level_then_down(self, peak_lr: float, stable: int, decay: int) -> Schedule:
        """Build the schedule after the warm-up from lengths in steps that fit the run."""
        minimum, height = self.min_factor(peak_lr), self._height()

        def factor(step: int) -> float:
            if step < stable:
                return 1.0
            if step >= stable + decay:
                return minimum
            return max(0.0, height((step - stable) / decay) * (1 - minimum) + minimum)

        return Curve(peak_lr, factor)

    def _height(self) -> Callable[[float], float]:
        match self.decay_type:
            case "linear":
                return lambda progress: 1 - progress
            case "cosine":
                cycles = self.num_cycles
                return lambda progress: 0.5 * (1 + math.cos(math.pi * cycles * 2 * progress))
            case "1-sqrt":
                return lambda progress: 1 - math.sqrt(progress)

    def _stable(self, warmup: int, decay: int, horizon: Horizon) -> int:
        if self.decay_start is not None:
            start = resolve("decay_start", self.decay_start, horizon)
            if start < warmup:
                raise ScheduleError(
                    "decay_start",
                    f"is {describe(self.decay_start, start)}, but the warm-up takes {warmup} "
                    "steps; start the decay later or shorten the warm-up",
                )
            stable = start - warmup
        elif self.stable_steps is not None:
            stable = resolve("stable_steps", self.stable_steps, horizon)
        else:
            # Never negative: the check below names all three lengths.
            stable = max(0, horizon.max_steps - warmup - decay)
        if warmup + stable + decay > horizon.max_steps:
            raise ScheduleError(
                "decay_steps",
                f"is {describe(self.decay_steps, decay)}, but warm-up {warmup} + stable {stable} + "
                f"decay {decay} = {warmup + stable + decay} steps, and the whole run has "
                f"{horizon.max_steps}; shorten one of them",
            )
        return stable
