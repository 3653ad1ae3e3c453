"""The optimizer's own learning rate."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from typing_extensions import override

from launcher.contracts import Horizon, Schedule, ScheduleError, SchedulerOption


class Adafactor(SchedulerOption):
    """Leave the rate to an optimizer that sets its own, and so has no `optimizer.lr`.

    The run reports the optimizer's rate before it is scaled by the size of each parameter.

    Source: Transformers' `AdafactorSchedule`, which reports the scaled rate of each group's first
    parameter.
    """

    uses_optimizer_lr: ClassVar[bool] = True

    kind: Literal["adafactor"]

    @override
    def build(self, peak_lr: float | None, horizon: Horizon) -> Schedule:
        if peak_lr is not None:
            raise ScheduleError(
                "kind",
                "adafactor reports the rate of an optimizer that sets its own, but optimizer.lr is "
                f"{peak_lr:g}; set optimizer.lr=null (adafactor with relative_step), or choose "
                "scheduler=constant",
            )
        return _Internal()


class _Internal(Schedule):
    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> None:
        # The engine then leaves the groups' rates alone.
        return None
