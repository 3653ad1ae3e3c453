"""Warm-up, which any schedule may have in front of it."""

from abc import abstractmethod

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Horizon, Schedule, SchedulerOption
from launcher.scheduler._curve import Curve, Factor
from launcher.scheduler._length import Length, resolve, told


class WarmedUp(SchedulerOption):
    """A schedule that starts with a ramp from 0 to the peak; its own curve begins where the ramp ends.

    Source: Transformers' `WarmUp` for TensorFlow: lr = peak · (step / warmup_steps) ^ power, then the other
    schedule with its step 0 at `warmup_steps`. With power 1 it is the warm-up of `get_scheduler`.
    """

    warmup_steps: Length
    """Length of the ramp to the peak: steps, a fraction of the run, or an amount with its unit."""
    warmup_power: float = Field(gt=0)
    """Exponent of the ramp: 1 is a straight line, 2 starts slowly, 0.5 starts fast."""

    @abstractmethod
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Factor:
        """The schedule's own curve, as a factor of the peak over the steps since the warm-up.

        Args:
            peak_lr: What the factor will multiply.
            warmup: Length of the warm-up in steps.
            horizon: The whole run, warm-up included.

        Raises:
            ValueError: Lengths or rates do not fit each other.
        """

    def warmup(self, peak_lr: float, warmup: int) -> Factor:
        """The ramp, as a factor of the peak over the steps from 0 to `warmup` - 1."""
        del peak_lr
        return lambda step: (step / warmup) ** self.warmup_power

    def curve(self, peak_lr: float, warmup: int, horizon: Horizon) -> Curve:
        """Ramp and curve joined, for a warm-up that may be longer than the run."""
        return Curve(
            peak_lr,
            warmup,
            self.warmup(peak_lr, warmup),
            self.after_warmup(peak_lr, warmup, horizon),
        )

    @override
    def build(self, peak_lr: float | None, horizon: Horizon) -> Schedule:
        peak = required(peak_lr, self.kind)
        warmup = resolve(self.warmup_steps, horizon)
        if warmup > horizon.max_steps:
            raise ValueError(
                f"warmup_steps is {told(self.warmup_steps, warmup)}, "
                f"but the whole run has {horizon.max_steps} steps; "
                "shorten the warm-up or lengthen the run"
            )
        return self.curve(peak, warmup, horizon)


def required(peak_lr: float | None, kind: str) -> float:
    """The peak learning rate, which every schedule but `adafactor` needs.

    Raises:
        ValueError: The optimizer sets its own learning rate.
    """
    if peak_lr is None:
        raise ValueError(
            f"{kind} scales the optimizer's learning rate, but optimizer.lr is null: the optimizer sets "
            "its own; choose scheduler=adafactor, or give optimizer.lr"
        )
    return peak_lr
