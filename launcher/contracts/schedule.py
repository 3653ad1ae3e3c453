"""Interface of learning rate schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class Horizon:
    """The run's length, from which a schedule resolves lengths given in other units.

    Attributes:
        max_steps: Optimizer steps of the whole run.
        samples_per_step: Samples in one optimizer step, over all ranks.
        tokens_per_step: Tokens in one optimizer step, over all ranks.
        steps_per_epoch: Optimizer steps that see every sample once; need not be whole.
    """

    max_steps: int
    samples_per_step: int
    tokens_per_step: int
    steps_per_epoch: float


class ScheduleError(ValueError):
    """A setting of a schedule that contradicts the run or the optimizer.

    Attributes:
        field: Dotted path of the setting below `scheduler`.
        reason: What is wrong and what to do, without the field.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.field} {self.reason}"


class Schedule(ABC):
    """Learning rate as a function of the step and of an explicit memory."""

    # The memory is an argument, not an attribute: a checkpoint holds it in TrainState, skipped
    # steps cannot drift from it, and `trainctl lr` plots a run that does not exist.
    @abstractmethod
    def lr(self, step: int, memory: Mapping[str, float]) -> float | None:
        """Return the learning rate of a step, from 0 on; None: the optimizer sets its own."""

    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        """Return the memory after the evaluation that followed `step` steps."""
        del scores, step
        return memory
