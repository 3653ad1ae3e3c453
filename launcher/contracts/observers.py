"""Who watches the steps of a run, and where the numbers go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.contracts.data import Window
    from launcher.contracts.engine import UpdateStats
    from launcher.run_dir import RunDir
    from launcher.training.state import TrainState


@dataclass(frozen=True, slots=True)
class StepReport:
    """What an observer learns after each step; tensors are on the device until one reads them.

    Attributes:
        state: The run after the step.
        window: What the step learned from.
        loss: Mean loss of the window. Shape (), on the device.
        update: What the update did.
        lr: Learning rate of the step.
        scores: Validation scores, when this step was evaluated.
    """

    state: TrainState
    window: Window
    loss: Tensor
    update: UpdateStats
    lr: float | None
    scores: Mapping[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Sees every step; raises to end the run."""

    def __call__(self, report: StepReport) -> None:
        """One step is done."""

    def close(self) -> None:
        """The run has ended, well or badly."""


Row = Mapping[str, float | int | None]
"""One logged step: `step`, `loss`, `lr`, `grad_norm`, …; None is a number that there is not."""


class Sink(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None:
        """One logged step; on disk, for a killed process, when this returns."""

    def close(self) -> None:
        """No more rows."""


@dataclass(frozen=True, slots=True)
class LogContext:
    """What a sink may want to know.

    Attributes:
        run_dir: Where files go.
        start_step: The step that a resumed run starts from: what later rows a killed predecessor
            wrote is void.
        max_steps: The step at which the run ends.
        summary: The header: what is said once at the start, (label, text) in order.
    """

    run_dir: RunDir
    start_step: int
    max_steps: int
    summary: Sequence[tuple[str, str]]
