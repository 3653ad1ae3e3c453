"""Schedules one after another."""

from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Schedule, ScheduleError, Settings
from launcher.scheduler._curves import WarmedUp
from launcher.scheduler._length import Length, describe, not_empty, resolve
from launcher.scheduler._nested import (
    AnySchedule,
    nested_memory,
    nested_watches,
    not_applicable_inside,
    update_nested_memory,
    with_location,
)


class Stage(Settings):
    """One schedule of a sequence, and its length."""

    steps: Length | None
    """Length of the stage; null in the last: the remaining steps."""
    schedule: AnySchedule
    """The schedule; its step 0 is the stage's first, and the stage is its whole run. Each starts
    from the optimizer's peak, not from the last rate of the previous stage."""


class Sequence(WarmedUp):
    """Schedules one after another, each as if the run began and ended with its stage.

    A stage that watches a score gets only the evaluations of its own steps.

    Source: torch's `SequentialLR`, whose milestones are the ends of the stages.
    """

    kind: Literal["sequence"]
    stages: Annotated[tuple[Stage, ...], AfterValidator(not_empty)]
    """The schedules in their order."""

    @property
    @override
    def watches(self) -> Mapping[str, str]:
        stages = enumerate(self.stages)
        return nested_watches({f"stages.{i}.schedule": stage.schedule for i, stage in stages})

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        stages = {f"stages.{i}.schedule": each.schedule for i, each in enumerate(self.stages)}
        return {**super().not_applicable(config), **not_applicable_inside(stages, config)}

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        steps = horizon.max_steps - warmup
        starts, schedules = [], []
        start = 0
        for place, stage in enumerate(self.stages):
            length = self._length(place, steps - start, horizon)
            starts.append(start)
            # A setting that contradicts its stage is named by its full path.
            try:
                schedules.append(stage.schedule.build(peak_lr, replace(horizon, max_steps=length)))
            except ValueError as error:
                raise with_location(error, f"stages.{place}.schedule") from error
            start += length
        return Stages(starts, schedules)

    def _length(self, place: int, left: int, horizon: Horizon) -> int:
        name, written = f"stages.{place}.steps", self.stages[place].steps
        if written is None and place < len(self.stages) - 1:
            raise ScheduleError(name, "is null, which only the last stage may be")
        length = left if written is None else resolve(name, written, horizon)
        if not 1 <= length <= left:
            asked = f"is {describe(written, length)}" if written is not None else "is null"
            raise ScheduleError(
                name,
                f"{asked}, but {max(0, left)} of the run's {horizon.max_steps} steps are left for "
                "it; shorten the stages before it or lengthen the run",
            )
        return length


@dataclass(frozen=True, slots=True)
class Stages(Schedule):
    """Schedules, and the steps on which they start."""

    starts: Ordered[int]
    schedules: Ordered[Schedule]

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float | None:
        place = self._place(step)
        return self.schedules[place].lr(step - self.starts[place], nested_memory(memory, place))

    @override
    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        # An evaluation after `step` steps follows step - 1, whose stage it belongs to.
        place = self._place(step - 1)
        old = nested_memory(memory, place)
        new = self.schedules[place].observe(old, scores, step - self.starts[place])
        return memory if new is old else update_nested_memory(memory, place, new)

    def _place(self, step: int) -> int:
        # The last stage continues past the end of the run.
        return max(0, sum(start <= step for start in self.starts) - 1)
