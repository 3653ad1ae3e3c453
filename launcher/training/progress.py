"""Observers that every run has: how far it is, and its best scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from typing_extensions import override

from launcher.contracts import Observer, StepReport, TrainState


@dataclass(slots=True)
class Progress(Observer):
    """Progress of the run, for the message of an error that ends it."""

    state: TrainState

    @override
    def __call__(self, report: StepReport) -> None:
        self.state = report.state


@dataclass(slots=True)
class Heartbeats(Observer):
    """Reports each step as progress; the last observer, so that a save is not taken for a step."""

    beat: Callable[[str, int], None]

    @override
    def __call__(self, report: StepReport) -> None:
        self.beat("step", report.state.step)


class BestScores(Observer):
    """Keeps the scores of the evaluation with the best objective, also over a resume.

    Args:
        objective: Validation score to compare.
        mode: `min` or `max`.
        memory: State of the observers at the save.
    """

    def __init__(self, objective: str, mode: str, memory: Mapping[str, float]) -> None:
        self._objective, self._sign = objective, -1 if mode == "max" else 1
        # With the objective in their names: the best of another score is no reference.
        self._prefix = f"best.{mode}.{objective}."
        self.scores: dict[str, float] = {
            key.removeprefix(self._prefix): value
            for key, value in memory.items()
            if key.startswith(self._prefix)
        }

    @override
    def __call__(self, report: StepReport) -> None:
        new = report.scores.get(self._objective)
        if new is None or not math.isfinite(new):
            return
        old = self.scores.get(self._objective)
        if old is None or self._sign * new < self._sign * old:
            finite = {k: v for k, v in report.scores.items() if math.isfinite(v)}
            self.scores = {"step": report.state.step, **finite}

    @override
    def memory(self) -> Mapping[str, float]:
        return {f"{self._prefix}{key}": value for key, value in self.scores.items()}
