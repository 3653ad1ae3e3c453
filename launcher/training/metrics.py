"""Build rows of metrics, and write them to sinks."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import Observer, Row, Sink, StepReport, TrainState
from launcher.training.failures import close_all

_LOSS_SUM, _LOSS_COUNT = "logging.loss_sum", "logging.loss_count"


class RowBuilder(Observer):
    """Averages the loss between two rows, and builds the rows.

    Args:
        every_steps: Interval in optimizer steps. Evaluated steps, skipped updates and the last step
            have rows as well.
        start: The state that the run starts from.
        logged_step: Last step whose row is final.
        evaluating: Returns the seconds spent on evaluations, which tokens_per_s does not count.
        compiling: Returns the seconds spent on compilation, which it does not count either.
        padding: Returns the share of padding in the newest window; None if nothing is padded.
    """

    # The sum of losses stays on the device: reading it makes the host wait for the step, so that is
    # done only for a row or a checkpoint.

    def __init__(
        self,
        *,
        every_steps: int,
        start: TrainState,
        logged_step: int,
        evaluating: Callable[[], float],
        compiling: Callable[[], float] = lambda: 0.0,
        padding: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._every_steps = every_steps
        self._logged_step = logged_step
        self._evaluating = evaluating
        self._compiling = compiling
        self._paused = evaluating() + compiling()
        self._padding = padding
        self._tokens = start.tokens
        self._time = self._start = time.perf_counter()
        # A checkpoint between two rows has the sum so far: a resumed run logs the same numbers.
        self._count = int(start.observers.get(_LOSS_COUNT, 0))
        self._sum: Tensor | float = start.observers.get(_LOSS_SUM, 0.0)
        self._was_due = False
        self._row: Row = {}

    @override
    def __call__(self, report: StepReport) -> None:

        if report.state.step <= self._logged_step:
            return
        if self._was_due:
            self._sum, self._count = 0.0, 0
        # The loss of a skipped update may be NaN; its row reads it.
        if report.update.applied:
            self._sum = self._sum + report.loss if self._count else report.loss
            self._count += 1
        self._was_due = self.is_due(report)

    @override
    def memory(self) -> Mapping[str, float]:

        if self._was_due or not self._count:
            return {}
        return {_LOSS_SUM: float(self._sum), _LOSS_COUNT: self._count}

    def is_due(self, report: StepReport) -> bool:
        """Return True if the step has a row."""
        return report.state.step > self._logged_step and (
            report.state.step % self._every_steps == 0
            or report.last
            or bool(report.scores)
            or not report.update.applied
        )

    def row(self, report: StepReport) -> Row:
        """Return the row of a step."""
        # Built once for several recorders: building resets the clock of tokens_per_s.
        if self._row.get("step") != report.state.step:
            self._row = self._build(report)
        return self._row

    def _build(self, report: StepReport) -> Row:
        state, now = report.state, time.perf_counter()
        compiled = self._compiling()
        paused = self._evaluating() + compiled
        tokens = state.tokens - self._tokens
        seconds = now - self._time - (paused - self._paused)
        self._tokens, self._time, self._paused = state.tokens, now, paused
        loss = report.loss.item()
        total, count = loss, 1
        if self._count > report.update.applied:  # more than this step's own
            total, count = float(self._sum), self._count
            if not report.update.applied and math.isfinite(loss):
                total, count = total + loss, count + 1
        return {
            "step": state.step,
            "loss": _number(total / count),
            "loss_step": _number(loss),
            **{k: _number(v.item()) for k, v in report.update.auxiliary_losses.items()},
            "lr": report.lr,
            "grad_norm": _number(report.update.grad_norm.item()),
            "tokens_per_s": tokens / seconds if tokens and seconds > 0 else None,
            "samples": state.samples,
            "tokens": state.tokens,
            **({"padding": share} if (share := self._padding()) is not None else {}),
            "skipped": state.skipped,
            **({"loss_scale": scale} if (scale := report.update.loss_scale) else {}),
            "elapsed_s": now - self._start,
            **({"compile_s": compiled} if compiled else {}),
            "memory_mib": _memory_mib(),
            **{key: _number(value) for key, value in report.scores.items()},
        }


class Recorder(Observer):
    """Writes rows to sinks."""

    def __init__(self, sinks: Sequence[Sink], rows: RowBuilder) -> None:
        self._sinks = sinks
        self._rows = rows

    @override
    def __call__(self, report: StepReport) -> None:

        if self._rows.is_due(report):
            row = self._rows.row(report)
            for sink in self._sinks:
                sink.write(row)

    def show_evaluation(self, done: int, total: int) -> None:
        """Show the progress of an evaluation in the sinks."""
        for sink in self._sinks:
            sink.show_evaluation(done, total)

    @override
    def close(self) -> None:
        # The console, which is the first, last: it can still show that another one failed.
        close_all([sink.close for sink in reversed(self._sinks)])


def _number(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _memory_mib() -> float:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
