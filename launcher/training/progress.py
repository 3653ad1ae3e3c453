"""Observers that report how far the run has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import override

from launcher.contracts import Observer, StepReport, TrainState


@dataclass(slots=True)
class Progress(Observer):
    """Remembers how far the run has come, for the message of an error that ends it."""

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
