"""Evaluate on the held-out samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals

from typing_extensions import override

from launcher.contracts import (
    Engine,
    MicroBatch,
    Request,
    Samples,
    StepReport,
    Task,
    World,
    split,
)
from launcher.training.batches import deal
from launcher.training.requests import stop_error, stop_signal

_NO_SCORES: Mapping[str, float] = {}
# Every evaluation draws the same masks, so that scores of different steps can be compared.
_DRAW = 0
# Interval at which the ranks agree on requests: how long a signal waits.
_SLOW_S = 0.2
# Limit of the micro-batches between two agreements. Each agreement is a collective.
_MAX_INTERVAL = 64


@dataclass(slots=True, kw_only=True)
class Evaluator:
    """Evaluates when it is due: the callable that the loop takes.

    Attributes:
        every_steps: Interval in optimizer steps; None evaluates after the last step only.
        max_samples: Limit for evaluations within the run, evenly spread over the set; None for all.
        final_max_samples: Limit for the evaluation after the last step; None for all.
        beat: Called with the phase and the step before each micro-batch.
        save: Saves the state of a step whose evaluation is due.
        interrupted: Called when a signal has ended the evaluation of a step, after the save.
        watchers: Called with the number of evaluated samples, and of all.
        compiling: Returns the seconds spent on compilation so far.
        seconds: Time spent on evaluations, without compilation.
        last: The newest scores.
    """

    world: World
    engine: Engine
    task: Task
    samples: Samples
    batch_size: int
    every_steps: int | None
    max_samples: int | None
    final_max_samples: int | None
    beat: Callable[[str, int], None]
    requests: Callable[[], Request]
    save: Callable[[StepReport], None]
    interrupted: Callable[[StepReport], None]
    watchers: list[Callable[[int, int], None]] = field(default_factory=list)
    compiling: Callable[[], float] = lambda: 0.0
    seconds: float = 0.0
    last: Mapping[str, float] = field(default_factory=dict)
    _evaluated: tuple[int, int] = (-1, 0)

    def __call__(self, report: StepReport) -> Mapping[str, float]:
        """Return the scores after a step, or none; raise on a signal, after saving the state."""
        count = self.due(report)
        if not count:
            return _NO_SCORES
        step = report.state.step
        if self._evaluated == (step, count):  # an observer stopped the run for these scores
            return self.last
        # Evaluating all samples may take minutes, in which a kill must not cost the last step.
        if report.last:
            self.save(report)
        signal = stop_signal(report.update.requests)
        if signal is None:
            signal = self._evaluate(count, step)
        # The state is saved with the report: the resumed run repeats the evaluation, and passes the
        # step on to the schedule and the observers, as without the signal.
        if signal is not None:
            if not report.last:
                self.save(report)
            self.interrupted(report)
            raise stop_error(signal, step)
        self._evaluated = (step, count)
        return self.last

    def due(self, report: StepReport) -> int:
        """Return the number of samples to evaluate after a step; 0 for no evaluation."""
        total, step = len(self.samples), report.state.step
        if report.last:
            return min(self.final_max_samples or total, total)
        if self.every_steps is not None and step % self.every_steps == 0:
            return min(self.max_samples or total, total)
        return 0

    def _evaluate(self, count: int, step: int) -> Signals | None:
        """Set `last` to the scores of `count` samples, unless a signal comes; return it."""
        total = len(self.samples)
        start = time.perf_counter() - self.compiling()
        indices = [i * total // count for i in range(count)]
        batches = _Agreed(self, indices, step)
        metrics = self.task.metrics(self.samples)
        for predictions in self.engine.evaluate(batches, self.task.predict):
            metrics.add(predictions)
        if batches.signal is None:
            self.last = metrics.compute()
        self.seconds += time.perf_counter() - self.compiling() - start
        return batches.signal


class _Agreed(Iterator[MicroBatch]):
    """This rank's micro-batches of an evaluation, until a rank receives a signal."""

    def __init__(self, evaluator: Evaluator, indices: Sequence[int], step: int) -> None:
        self.signal: Signals | None = None
        self._evaluator, self._step, self._total = evaluator, step, len(indices)
        world, self._size = evaluator.world, evaluator.batch_size
        self._dealt = deal(
            split(indices, self._size), data_ranks=world.data_ranks, data_rank=world.data_rank
        )
        self._place = self._next_agreement = 0
        self._interval = 1
        self._agreed_at = time.monotonic()

    @override
    def __next__(self) -> MicroBatch:
        if self._place == len(self._dealt):
            self._show()
            raise StopIteration
        if self._place == self._next_agreement:
            self._agree()
        if self.signal is not None:
            raise StopIteration
        self._show()
        self._evaluator.beat("evaluate", self._step)
        self._place += 1
        return self._evaluator.samples.micro_batch(self._dealt[self._place - 1], _DRAW)

    def _agree(self) -> None:
        """Sum the ranks' requests, and choose the position of the next agreement."""
        request, now = self._evaluator.requests(), time.monotonic()
        if now - self._agreed_at > _SLOW_S:
            request |= Request.CONTINUE  # "slow", for this use of the flag
        union = self._evaluator.engine.agree(request)
        self._agreed_at = now
        self.signal = stop_signal(union)
        # Decided from the union and not by each rank's clock: ranks that agree at different
        # positions wait for each other forever.
        if union & Request.CONTINUE:
            self._interval = max(1, self._interval // 2)
        else:
            self._interval = min(2 * self._interval, _MAX_INTERVAL)
        self._next_agreement = self._place + self._interval

    def _show(self) -> None:
        done = self._place * self._size * self._evaluator.world.data_ranks
        for show in self._evaluator.watchers:
            show(min(done, self._total), self._total)
