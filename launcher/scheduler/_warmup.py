"""Warm-up, which any schedule may have in front of it."""

from abc import abstractmethod
from collections.abc import Mapping

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Misfit, Schedule, SchedulerOption
from launcher.scheduler._curve import Curve, Factor, Ramp
from launcher.scheduler._length import Length, is_zero, resolve, told


class WarmedUp(SchedulerOption):
    """A schedule that starts with a ramp from 0 to the peak; its own step 0 is where the ramp ends.

    Source: Transformers' `WarmUp` for TensorFlow: lr = peak · (step / warmup_steps) ^ power, then
    the other schedule at `step - warmup_steps`. With power 1 it is the warm-up of `get_scheduler`.
    """

    warmup_steps: Length
    """Length of the ramp to the peak: steps, a fraction of the run, or an amount with its unit."""
    warmup_power: float = Field(gt=0)
    """Exponent of the ramp: 1 is a straight line, 2 starts slowly, 0.5 starts fast."""

    @abstractmethod
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        """The schedule itself, over the steps since the warm-up; defined past the run's end too.

        Args:
            peak_lr: Learning rate at the end of the warm-up.
            warmup: Length of the warm-up in steps.
            horizon: The whole run, warm-up included.

        Raises:
            Misfit: Lengths or rates do not fit each other.
        """

    def ramp(self, peak_lr: float, warmup: int) -> Factor:
        """The warm-up over the peak, for the steps from 0 to `warmup` - 1."""
        del peak_lr
        power = self.warmup_power
        return lambda step: float((step / warmup) ** power)

    def joined(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        """Ramp and schedule in one, also for a warm-up that is longer than the run."""
        then = self.after_warmup(peak_lr, warmup, horizon)
        return Ramp(Curve(peak_lr, self.ramp(peak_lr, warmup)), warmup, then) if warmup else then

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if not is_zero(self.warmup_steps):
            return found
        return {**found, "warmup_power": "warmup_steps is 0"}

    @override
    def build(self, peak_lr: float | None, horizon: Horizon) -> Schedule:
        if peak_lr is None:
            raise Misfit(
                "kind",
                f"{self.kind} scales the optimizer's learning rate, but optimizer.lr is null: the "
                "optimizer sets its own; choose scheduler=adafactor, or give optimizer.lr",
            )
        warmup = resolve("warmup_steps", self.warmup_steps, horizon)
        if warmup > horizon.max_steps:
            raise Misfit(
                "warmup_steps",
                f"is {told(self.warmup_steps, warmup)}, but the whole run has "
                f"{horizon.max_steps} steps; shorten the warm-up or lengthen the run",
            )
        return self.joined(peak_lr, warmup, horizon)
