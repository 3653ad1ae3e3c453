"""Schedules one after another."""

from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Misfit, Schedule, Settings
from launcher.scheduler._length import Length, not_empty, resolve, told
from launcher.scheduler._nested import (
    AnySchedule,
    misplaced,
    not_applicable_inside,
    recalled,
    remembered,
    watched_inside,
)
from launcher.scheduler._warmup import WarmedUp


class Stage(Settings):
    """One schedule of a sequence, and how long it holds."""

    steps: Length | None
    """Length of the stage; null in the last: all that is left."""
    schedule: AnySchedule
    """What holds: its step 0 is the stage's first, and to it the stage is the whole run. All start
    from the optimizer's peak, not from where the one before ended."""


class Sequence(WarmedUp):
    """Schedules one after another, each as if the run began and ended with its stage.

    After the last stage its schedule goes on. A stage that watches a score sees the evaluations of
    its own steps only.

    Source: torch's `SequentialLR`, whose milestones are the ends of the stages.
    """

    kind: Literal["sequence"]
    """Follow several schedules one after another."""
    stages: Annotated[tuple[Stage, ...], AfterValidator(not_empty)]
    """The schedules in their order."""

    @property
    @override
    def watches(self) -> Mapping[str, str]:
        stages = enumerate(self.stages)
        return watched_inside({f"stages.{i}.schedule": stage.schedule for i, stage in stages})

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
            try:
                schedules.append(stage.schedule.build(peak_lr, replace(horizon, max_steps=length)))
            except ValueError as error:
                raise misplaced(error, f"stages.{place}.schedule") from error
            start += length
        return Stages(starts, schedules)

    def _length(self, place: int, left: int, horizon: Horizon) -> int:
        """Length of one stage in steps."""
        name, written = f"stages.{place}.steps", self.stages[place].steps
        if written is None and place < len(self.stages) - 1:
            raise Misfit(name, "is null, which only the last stage may be")
        length = left if written is None else resolve(name, written, horizon)
        if not 1 <= length <= left:
            asked = f"is {told(written, length)}" if written is not None else "is null"
            raise Misfit(
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
        return self.schedules[place].lr(step - self.starts[place], recalled(memory, place))

    @override
    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        place = self._place(step - 1)
        old = recalled(memory, place)
        new = self.schedules[place].observe(old, scores, step - self.starts[place])
        return memory if new is old else remembered(memory, place, new)

    def _place(self, step: int) -> int:
        """Which stage a step belongs to."""
        return max(0, sum(start <= step for start in self.starts) - 1)
