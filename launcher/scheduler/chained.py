"""Schedules multiplied with each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator
from typing_extensions import override

from launcher.contracts import ConfigView, Horizon, Schedule
from launcher.scheduler._curves import WarmedUp
from launcher.scheduler._length import not_empty
from launcher.scheduler._nested import (
    AnySchedule,
    nested_memory,
    nested_watches,
    not_applicable_inside,
    update_nested_memory,
    with_location,
)


class Chained(WarmedUp):
    """The peak times the factors of several schedules, all over the same steps.

    Source: torch's `ChainedScheduler`.
    """

    kind: Literal["chained"]
    parts: Annotated[tuple[AnySchedule, ...], AfterValidator(not_empty)]
    """The schedules; to each, the steps after the warm-up are the whole run."""

    @property
    @override
    def watches(self) -> Mapping[str, str]:
        return nested_watches({f"parts.{place}": part for place, part in enumerate(self.parts)})

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        parts = {f"parts.{place}": part for place, part in enumerate(self.parts)}
        return {**super().not_applicable(config), **not_applicable_inside(parts, config)}

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        inner = replace(horizon, max_steps=max(1, horizon.max_steps - warmup))
        parts = []
        for place, part in enumerate(self.parts):
            # A setting that contradicts the run is named by its full path: `parts.1.decay_steps`.
            try:
                parts.append(part.build(peak_lr, inner))
            except ValueError as error:
                raise with_location(error, f"parts.{place}") from error
        return Product(peak_lr, parts)


@dataclass(frozen=True, slots=True)
class Product(Schedule):
    """Schedules with the same peak, multiplied as factors of it."""

    peak_lr: float
    parts: Sequence[Schedule]

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        product = self.peak_lr
        for place, part in enumerate(self.parts):
            lr = part.lr(step, nested_memory(memory, place))
            # At a peak of 0 there is no factor: the product is 0 anyway.
            if lr is not None and self.peak_lr:
                product *= lr / self.peak_lr
        return product

    @override
    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        for place, part in enumerate(self.parts):
            old = nested_memory(memory, place)
            new = part.observe(old, scores, step)
            # Most schedules have no memory: nothing to copy.
            memory = memory if new is old else update_nested_memory(memory, place, new)
        return memory
