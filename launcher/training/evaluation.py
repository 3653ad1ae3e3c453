"""Scores on the held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.contracts import Engine, Samples, Task
from launcher.training.state import TrainState

_NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Evaluates when it is due: the callable that the loop takes.

    Attributes:
        engine: Computes the losses.
        task: Turns summed loss into scores.
        samples: The held-out samples.
        batch_size: Samples that pass through the device at once.
        every_steps: Cadence in optimizer steps; None evaluates after the last step only.
        max_samples: Limit for evaluations within the run, evenly spread over the set; None for all
            of it. The evaluation after the last step sees all of it.
        max_steps: The last step.
    """

    engine: Engine
    task: Task
    samples: Samples
    batch_size: int
    every_steps: int | None
    max_samples: int | None
    max_steps: int

    def __call__(self, state: TrainState) -> Mapping[str, float]:
        """The scores after a step; empty when none are due."""
        total = len(self.samples)
        if state.step == self.max_steps:
            return self._scores(total) if total else _NOTHING
        if self.every_steps is not None and state.step % self.every_steps == 0 and total:
            return self._scores(min(self.max_samples or total, total))
        return _NOTHING

    def _scores(self, count: int) -> Mapping[str, float]:
        total = len(self.samples)
        indices = [i * total // count for i in range(count)]
        pieces = [indices[i : i + self.batch_size] for i in range(0, count, self.batch_size)]
        loss_sum = self.engine.evaluate(self.samples.micro_batch(piece) for piece in pieces)
        return self.task.scores(loss_sum, self.samples.num_targets(indices), self.samples)
