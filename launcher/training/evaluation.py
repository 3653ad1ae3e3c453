"""Scores on the held-out samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.contracts import Engine, MicroBatch, Samples, Task, TrainState, World
from launcher.training.batches import deal

_NOTHING: Mapping[str, float] = {}
_DRAW = 0
"""Every evaluation makes the same random choices."""


@dataclass(slots=True, kw_only=True)
class Evaluator:
    """Evaluates when it is due: the callable that the loop takes.

    Attributes:
        world: Which share of the samples this rank reads.
        engine: Computes the outputs.
        task: Reduces outputs to predictions, and predictions to metrics.
        samples: The held-out samples.
        batch_size: Samples that pass through the device at once.
        every_steps: Cadence in optimizer steps; None evaluates after the last step only.
        max_samples: Limit for evaluations within the run, evenly spread over the set; None for all
            of it. The evaluation after the last step sees all of it, also if an observer stopped
            the run there.
        max_steps: The last step.
        beat: Called with the phase and the step before each micro-batch.
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
    max_steps: int
    beat: Callable[[str, int], None]
    seconds: float = 0.0
    last: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, state: TrainState) -> Mapping[str, float]:
        """The scores after a step; empty when none are due."""
        total = len(self.samples)
        if state.step == self.max_steps or state.stopped is not None:
            return self._scores(total, state.step) if total else _NOTHING
        if self.every_steps is not None and state.step % self.every_steps == 0 and total:
            return self._scores(min(self.max_samples or total, total), state.step)
        return _NOTHING

    def _scores(self, count: int, step: int) -> Mapping[str, float]:
        total = len(self.samples)
        start = time.perf_counter()
        indices = [i * total // count for i in range(count)]
        dealt = deal(
            indices,
            size=self.batch_size,
            data_ranks=self.world.data_ranks,
            data_rank=self.world.data_rank,
        )
        metrics = self.task.metrics(self.samples)
        batches = self._micro_batches(dealt, step)
        for predictions in self.engine.evaluate(batches, self.task.predict):
            metrics.add(predictions)
        self.last = metrics.compute()
        self.seconds += time.perf_counter() - start
        return self.last

    def _micro_batches(self, dealt: Iterable[Sequence[int]], step: int) -> Iterator[MicroBatch]:
        for indices in dealt:
            self.beat("evaluate", step)
            yield self.samples.micro_batch(indices, _DRAW)
