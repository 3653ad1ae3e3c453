"""Scores on the held-out samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals

from typing_extensions import override

from launcher.contracts import Engine, MicroBatch, Request, Samples, StepReport, Task, World
from launcher.training.batches import deal
from launcher.training.requests import stop_error, stop_signal

_NO_SCORES: Mapping[str, float] = {}
# Every evaluation makes the same random choices.
_DRAW = 0
# The ranks agree on requests about this often.
_SLOW_S = 0.2
# Most micro-batches between two agreements: each is a collective.
_MAX_INTERVAL = 64


@dataclass(slots=True, kw_only=True)
class Evaluator:
    """Evaluates when it is due: the callable that the loop takes.

    The evaluation after the last step may take minutes: the state is saved before it. A signal ends
    any evaluation: the state is saved with its report, and the resumed run repeats the evaluation.

    Attributes:
        world: This rank's place, which decides its share of the samples.
        engine: Computes the outputs.
        task: Reduces outputs to predictions, and predictions to metrics.
        samples: The held-out samples.
        batch_size: Samples that pass through the device at once.
        every_steps: Cadence in optimizer steps; None evaluates after the last step only.
        max_samples: Limit for evaluations within the run, evenly spread over the set; None for all
            of it.
        final_max_samples: Limit for the evaluation after the last step, also if an observer stopped
            the run there; None for none.
        beat: Called with the phase and the step before each micro-batch.
        requests: This rank's requests.
        save: Saves the state of a step whose evaluation is due.
        interrupted: Called when a signal has ended the evaluation of a step, which is saved.
        watchers: Called with the samples that are evaluated, and how many there will be.
        seconds: Time spent evaluating so far: what rates of training leave out.
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
    seconds: float = 0.0
    last: Mapping[str, float] = field(default_factory=dict)
    _evaluated: tuple[int, int] = (-1, 0)

    def __call__(self, report: StepReport) -> Mapping[str, float]:
        """Return the scores after a step; empty when none are due.

        Raises:
            Preempted, Interrupted: A rank got a signal; the state is saved.
        """
        count = self.due(report)
        if not count:
            return _NO_SCORES
        step = report.state.step
        if self._evaluated == (step, count):  # an observer stopped the run for these scores
            return self.last
        if report.last:
            self.save(report)
        signal = stop_signal(report.update.requests)
        if signal is None:
            signal = self._evaluate(count, step)
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
        """Set `last` to the scores of so many samples; return the signal that came before."""
        total = len(self.samples)
        start = time.perf_counter()
        indices = [i * total // count for i in range(count)]
        batches = _Agreed(self, indices, step)
        metrics = self.task.metrics(self.samples)
        for predictions in self.engine.evaluate(batches, self.task.predict):
            metrics.add(predictions)
        if batches.signal is None:
            self.last = metrics.compute()
        self.seconds += time.perf_counter() - start
        return batches.signal


class _Agreed(Iterator[MicroBatch]):
    """This rank's micro-batches of an evaluation, until some rank got a signal.

    Attributes:
        signal: The signal, the same on all ranks; None as long as none came.
    """

    def __init__(self, evaluator: Evaluator, indices: Sequence[int], step: int) -> None:
        self.signal: Signals | None = None
        self._evaluator, self._step, self._total = evaluator, step, len(indices)
        world, self._size = evaluator.world, evaluator.batch_size
        self._dealt = deal(
            indices, size=self._size, data_ranks=world.data_ranks, data_rank=world.data_rank
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
        """Add up the ranks' requests, and choose the next place where they do: all the same one."""
        request, now = self._evaluator.requests(), time.monotonic()
        if now - self._agreed_at > _SLOW_S:
            request |= Request.CONTINUE  # "slow", for this use of the flag
        union = self._evaluator.engine.agree(request)
        self._agreed_at = now
        self.signal = stop_signal(union)
        # Clocks differ between ranks; whether one of them finds the interval long does not.
        if union & Request.CONTINUE:
            self._interval = max(1, self._interval // 2)
        else:
            self._interval = min(2 * self._interval, _MAX_INTERVAL)
        self._next_agreement = self._place + self._interval

    def _show(self) -> None:
        done = self._place * self._size * self._evaluator.world.data_ranks
        for show in self._evaluator.watchers:
            show(min(done, self._total), self._total)
