"""What watches the steps of a run: the recorder of numbers and the saver of state."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import Signals

import torch

from launcher.contracts import CheckpointStore, Request, Row, Sink, Snapshot, StepReport
from launcher.errors import Interrupted, Preempted
from launcher.training.requests import RankRequests, stop_signal
from launcher.training.state import TrainState


class Recorder:
    """Turns the reports that are due into rows: the only place that reads losses from the device.

    Args:
        sinks: Where rows go.
        every_steps: Cadence in optimizer steps. Evaluated steps, skipped updates and the last step
            are logged as well.
        start: The state that the run starts from.
        max_steps: The last step.
        evaluating: Seconds spent on evaluations so far; tokens_per_s leaves them out.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        every_steps: int,
        start: TrainState,
        max_steps: int,
        evaluating: Callable[[], float],
    ) -> None:
        self._evaluating = evaluating
        self._evaluated = evaluating()
        self._sinks = sinks
        self._every_steps = every_steps
        self._max_steps = max_steps
        self._tokens = start.tokens
        self._time = self._start = time.perf_counter()

    def __call__(self, report: StepReport) -> None:
        """Log the step if it is due."""
        step = report.state.step
        if (
            step % self._every_steps == 0
            or step == self._max_steps
            or report.scores
            or not report.update.applied
        ):
            row = self._row(report)
            for sink in self._sinks:
                sink.write(row)

    def close(self) -> None:
        """Close every sink, the console last, even if one fails."""
        for sink in reversed(self._sinks):
            sink.close()

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


class Saver:
    """Saves the run when a cadence is due, when a rank asked for it, and after the last step.

    Every decision follows from the report, which is the same on all ranks: saving is collective.

    Args:
        store: Where checkpoints go.
        every_steps: Cadence in optimizer steps, or None.
        snapshot: Makes the snapshot of a state.
        requests: This rank's requests, whose clock starts again with each save.
        max_steps: The last step.
    """

    def __init__(
        self,
        store: CheckpointStore,
        every_steps: int | None,
        snapshot: Callable[[TrainState], Snapshot],
        *,
        requests: RankRequests,
        max_steps: int,
    ) -> None:
        self._store = store
        self._every_steps = every_steps
        self._snapshot = snapshot
        self._requests = requests
        self._max_steps = max_steps

    def __call__(self, report: StepReport) -> None:
        """Save if it is due; end the run if a signal asked for it."""
        self._store.poll()
        state, requests = report.state, report.update.requests
        signal = stop_signal(requests)
        if signal is not None or state.step == self._max_steps or self._due(state.step, requests):
            self._store.save(self._snapshot(state))
            self._requests.saved()
        if signal is not None:
            self._store.wait()
            raise stopped(signal, state.step)

    def close(self) -> None:
        """Wait until what was saved is published."""
        self._store.close()

    def _due(self, step: int, requests: Request) -> bool:
        on_cadence = self._every_steps is not None and step % self._every_steps == 0
        return on_cadence or bool(requests & Request.SAVE)


@dataclass(slots=True)
class Progress:
    """Remembers how far the run has come, for the message of an error that ends it."""

    state: TrainState

    def __call__(self, report: StepReport) -> None:
        """Take the new state."""
        self.state = report.state

    def close(self) -> None:
        """Nothing is held."""


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
