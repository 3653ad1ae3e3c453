"""Observers of every run: progress and best scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from typing_extensions import override

from launcher.contracts import Observer, StepReport, TrainState


@dataclass(slots=True)
class Progress(Observer):
    """Keeps the last state, for the message of an error."""

    state: TrainState

    @override
    def __call__(self, report: StepReport) -> None:
        self.state = report.state


@dataclass(slots=True)
class Heartbeats(Observer):
    """Reports each step to the launcher."""

    # The last observer: a save, which may take long, must not count as the next step.

    beat: Callable[[str, int], None]

    @override
    def __call__(self, report: StepReport) -> None:
        self.beat("step", report.state.step)


class BestScores(Observer):
    """Keeps the scores of the evaluation with the best objective, also across a resume."""

    def __init__(self, objective: str, mode: str, memory: Mapping[str, float]) -> None:
        self._objective, self._sign = objective, -1 if mode == "max" else 1
        # The objective is part of the names: a resume may change it, and the best of another score
        # cannot be compared.
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
