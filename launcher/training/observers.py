"""What watches the steps of a run: the recorder of numbers and the saver of state."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from signal import Signals

import torch
from typing_extensions import override

from launcher.contracts import (
    CheckpointStore,
    Observer,
    Request,
    Row,
    Sink,
    Snapshot,
    StepReport,
    TrainState,
)
from launcher.errors import Interrupted, Preempted
from launcher.training.closing import close_all
from launcher.training.requests import RankRequests, stop_signal


class Recorder(Observer):
    """Turns the reports that are due into rows: the only place that reads losses from the device.

    Args:
        sinks: Where rows go.
        every_steps: Cadence in optimizer steps. Evaluated steps, skipped updates and the last step
            are logged as well.
        start: The state that the run starts from.
        evaluating: Seconds spent on evaluations so far; tokens_per_s leaves them out.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        every_steps: int,
        start: TrainState,
        evaluating: Callable[[], float],
    ) -> None:
        self._evaluating = evaluating
        self._evaluated = evaluating()
        self._sinks = sinks
        self._every_steps = every_steps
        self._tokens = start.tokens
        self._time = self._start = time.perf_counter()

    @override
    def __call__(self, report: StepReport) -> None:
        """Log the step if it is due."""
        step = report.state.step
        if (
            step % self._every_steps == 0
            or report.last
            or report.scores
            or not report.update.applied
        ):
            row = self._row(report)
            for sink in self._sinks:
                sink.write(row)

    @override
    def close(self) -> None:
        """Close every sink, the console last, even if one fails."""
        close_all([sink.close for sink in reversed(self._sinks)])

    def _row(self, report: StepReport) -> Row:
        state, now = report.state, time.perf_counter()
        evaluated = self._evaluating()
        tokens = state.tokens - self._tokens
        seconds = now - self._time - (evaluated - self._evaluated)
        self._tokens, self._time, self._evaluated = state.tokens, now, evaluated
        return {
            "step": state.step,
            "loss": _number(report.loss.item()),
            "lr": report.lr,
            "grad_norm": _number(report.update.grad_norm.item()),
            "tokens_per_s": tokens / seconds if seconds > 0 else None,
            "samples": state.samples,
            "tokens": state.tokens,
            "skipped": state.skipped,
            **({"loss_scale": scale} if (scale := report.update.loss_scale) else {}),
            "elapsed_s": now - self._start,
            "memory_mib": _memory_mib(),
            **{key: _number(value) for key, value in report.scores.items()},
        }


class Saver(Observer):
    """Saves the run when a cadence is due, when a rank asked for it, and after the last step.

    Every decision follows from the report, which is the same on all ranks: saving is collective.

    Args:
        store: Where checkpoints go.
        every_steps: Cadence in optimizer steps, or None.
        snapshot: Makes the snapshot of a state.
        requests: This rank's requests, whose clock starts again with each save.
    """

    def __init__(
        self,
        store: CheckpointStore,
        every_steps: int | None,
        snapshot: Callable[[TrainState], Snapshot],
        *,
        requests: RankRequests,
    ) -> None:
        self._store = store
        self._every_steps = every_steps
        self._snapshot = snapshot
        self._requests = requests

    @override
    def __call__(self, report: StepReport) -> None:
        """Save if it is due; end the run if a signal asked for it."""
        self._store.poll()
        state, requests = report.state, report.update.requests
        signal = stop_signal(requests)
        if signal is not None or report.last or self._due(state.step, requests):
            self._store.save(self._snapshot(state))
            self._requests.saved()
        if signal is not None or report.last:
            # Not in `close`: after a failure the other ranks may be gone, and would be waited for.
            self._store.wait()
        if signal is not None:
            raise stopped(signal, state.step)

    def _due(self, step: int, requests: Request) -> bool:
        on_cadence = self._every_steps is not None and step % self._every_steps == 0
        return on_cadence or bool(requests & Request.SAVE)


@dataclass(slots=True)
class Progress(Observer):
    """Remembers how far the run has come, for the message of an error that ends it."""

    state: TrainState

    @override
    def __call__(self, report: StepReport) -> None:
        self.state = report.state


def with_memory(state: TrainState, observers: Iterable[Observer]) -> TrainState:
    """The state with what every observer remembers after its step."""
    memory: dict[str, float] = {}
    for observer in observers:
        new = observer.memory()
        if taken := memory.keys() & new.keys():
            raise ValueError(f"two observers remember {', '.join(sorted(taken))}; rename one")
        memory |= new
    return replace(state, observers=memory)


@dataclass(slots=True)
class Beating(Observer):
    """Reports each step as progress; the last observer, so that a save is not taken for a step."""

    beat: Callable[[str, int], None]

    @override
    def __call__(self, report: StepReport) -> None:
        self.beat("step", report.state.step)


def stopped(signal: Signals, step: int) -> Preempted | Interrupted:
    """The error with which a run ends that a signal stopped."""
    kind = Interrupted if signal is Signals.SIGINT else Preempted
    return kind(f"{signal.name} received: stopped after step {step}")


def _number(value: float) -> float | None:
    """A number for a log, or None: NaN is never written as a number."""
    return value if math.isfinite(value) else None


def _memory_mib() -> float:
    """Peak memory of the device, or of the process where the device is the CPU, in MiB."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
