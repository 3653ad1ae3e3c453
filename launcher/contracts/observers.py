"""Observers of the steps of a run, and the sinks that metrics go to."""

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
    """Report of one step; its tensors stay on the device until an observer reads them.

    Attributes:
        state: The run after the step.
        window: What the step learned from.
        loss: Mean loss of the window over all ranks. Shape (), on the device.
        update: What the update did.
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
    """Sees every step of the run on every rank.

    Observers are called in the order of `GROUPS`; those of `logging` and `checkpoint` come last, so
    that a row is on disk before the state that follows it, and a checkpoint holds what every other
    observer saves. An exception ends the run at once and as failed.

    All ranks must return a `Stop` after the same step. They do if it follows from what is equal on
    all ranks: the report's numbers, except those of `window`, and the config. A decision from a
    clock, a file or a signal is one rank's own and must be agreed on first.
    """

    @abstractmethod
    def __call__(self, report: StepReport) -> Stop | None:
        """Process the report of a step; return a `Stop` to end the run after it."""

    def memory(self) -> Mapping[str, float]:
        """Numbers that a resumed run needs, named `<observer>.<name>`; most need none.

        A checkpoint holds them, and a resumed run gives them back as `RunContext.start.observers`.
        """
        return {}

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release what is held; called once, however the run ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Parts of a run that an option may use to make its observers.

    Attributes:
        run_dir: Where files go.
        world: This process's place among the ranks.
        start: The state that the run starts from, with the state of the observers.
        logged_step: Last step whose row is final: that of `start`, or the one before it if the
            evaluation of that step was interrupted and is repeated.
        max_steps: The step at which the run ends if no observer stops it before.
        summary: The header: what is printed once at the start, (label, text) in order.
        config: Values of the resolved config, as in config.json.
        recorder: Makes the observer that writes rows of metrics to sinks.
        saver: Makes the observer that saves the state: after every so many steps (None: not by
            steps), when a rank requests it, and after the last step.
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
"""One logged step. `loss` is the mean over the steps since the row before, `loss_step` that of the
step alone; with them `step`, `lr`, `grad_norm`, …; None is a number that there is not."""


class Sink(ABC):
    """Destination of rows, such as a file or the console."""

    @abstractmethod
    def write(self, row: Row) -> None:
        """Write one logged step; on disk, for a killed process, when this returns."""

    def show_evaluation(self, done: int, total: int) -> None:  # noqa: B027 - files need not
        """Show that so many of all samples are evaluated; by default nothing."""

    @abstractmethod
    def close(self) -> None:
        """Close the sink: no more rows come."""


@dataclass(frozen=True, slots=True)
class LogContext:
    """Facts about the run that a sink may use.

    Attributes:
        run_dir: Where files go.
        start_step: Last step whose row is final; a resumed run writes those after it again.
        max_steps: The step at which the run ends.
        summary: The header: what is printed once at the start, (label, text) in order.
        config: Values of the resolved config, as in config.json.
    """

    run_dir: RunDir
    start_step: int
    max_steps: int
    summary: Sequence[tuple[str, str]]
    config: Mapping[str, Any] = field(default_factory=dict)
