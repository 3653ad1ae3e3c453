"""Interfaces of observers of a run's steps, and of sinks for metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.contracts.state import TrainState

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.contracts.data import Window
    from launcher.contracts.engine import UpdateStats, World
    from launcher.run_dir import RunDir


@dataclass(frozen=True, slots=True)
class StepReport:
    """Report of one step; tensors stay on the device until an observer reads them.

    Attributes:
        state: The run after the step.
        window: The step's data.
        loss: Mean loss of the window over all ranks. Shape (), on the device.
        update: Result of the update.
        lr: Learning rate of the step.
        scores: Validation scores over all ranks, when this step was evaluated.
        last: The run ends normally with this step: at its full length, or because an observer that
            was called before returned a `Stop`. The scores are then those of at most
            `final_eval_max_samples` held-out samples.
    """

    state: TrainState
    window: Window
    loss: Tensor
    update: UpdateStats
    lr: float | None
    scores: Mapping[str, float] = field(default_factory=dict)
    last: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """An observer's request to end the run normally after the current step.

    The other observers still see the step, as the last one; the state is evaluated, saved and
    exported as at the full length.

    Attributes:
        reason: Shown and recorded after "stopped after step N: ".
    """

    reason: str


class Observer(ABC):
    """Called after every step of the run, on every rank.

    Observers are called in the order of `GROUPS`. An exception ends the run at once, as failed.

    All ranks must return a `Stop` after the same step. They do if it follows from what is equal on
    all ranks: the report's numbers, except those of `window`, and the config. A decision from a
    clock, a file or a signal is one rank's own and must be agreed on first.
    """

    # `logging` and `checkpoint` are last in GROUPS: a row is on disk before the state that follows
    # it, and a checkpoint has the state of all other observers after the same step.
    @abstractmethod
    def __call__(self, report: StepReport) -> Stop | None:
        """Process the report of a step; return a `Stop` to end the run after it."""

    def memory(self) -> Mapping[str, float]:
        """Return numbers to save in a checkpoint, named `<observer>.<name>`; by default none.

        A resumed run finds them in `RunContext.start.observers`.
        """
        return {}

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release files and other resources; called once, however the run ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Parts of a run that an option may use to make its observers.

    Attributes:
        run_dir: The run directory.
        world: Rank, device and mesh of this process.
        start: The state that the run starts from, with the state of the observers.
        logged_step: Last step whose row is final: that of `start`, or the one before it if the
            evaluation of that step was interrupted and is repeated.
        max_steps: The step at which the run ends if no observer stops it before.
        summary: What is printed once at the start, (label, text) in order.
        config: Values of the resolved config, as in config.json.
        recorder: Returns the observer that writes rows of metrics to sinks.
        saver: Returns the observer that saves the state: every so many steps (None: not by steps),
            when a rank requests it, and after the last step.
    """

    run_dir: RunDir
    world: World
    start: TrainState
    logged_step: int
    max_steps: int
    summary: Sequence[tuple[str, str]]
    config: Mapping[str, Any]
    recorder: Callable[[Sequence[Sink]], Observer]
    saver: Callable[[int | None], Observer]


Row = Mapping[str, float | int | None]
"""One logged step: `step`, `lr`, `grad_norm`, …; None where a number does not exist. `loss` is the
mean over the steps since the previous row, `loss_step` that of the step alone."""


class Sink(ABC):
    """Destination of rows, such as a file or the console."""

    @abstractmethod
    def write(self, row: Row) -> None:
        """Write one logged step; when this returns, it survives a kill of the process."""

    def show_evaluation(self, done: int, total: int) -> None:  # noqa: B027 - files need not
        """Show the progress of an evaluation, in samples; by default nothing."""

    @abstractmethod
    def close(self) -> None:
        """Close the sink."""


@dataclass(frozen=True, slots=True)
class LogContext:
    """Facts about the run that a sink may use.

    Attributes:
        run_dir: The run directory.
        start_step: Last step whose row is final; a resumed run writes those after it again.
        max_steps: The step at which the run ends.
        summary: What is printed once at the start, (label, text) in order.
        config: Values of the resolved config, as in config.json.
    """

    run_dir: RunDir
    start_step: int
    max_steps: int
    summary: Sequence[tuple[str, str]]
    config: Mapping[str, Any] = field(default_factory=dict)
