"""Decide when a run is saved, and collect the state of its observers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from typing_extensions import override

from launcher.contracts import (
    CheckpointStore,
    Observer,
    Request,
    StepReport,
    TrainState,
    UpdateStats,
    Window,
)
from launcher.training.requests import stop_error, stop_signal

_DUE = "evaluation."
_LOGGED = "logging."


class Saver(Observer):
    """Saves the run at its interval, on the request of a rank, and after the last step."""

    # Saving is collective: every decision follows from the report, which is equal on all ranks.

    def __init__(
        self,
        store: CheckpointStore,
        every_steps: int | None,
        save: Callable[[TrainState], None],
    ) -> None:
        self._store = store
        self._every_steps = every_steps
        self._save = save

    @override
    def __call__(self, report: StepReport) -> None:

        self._store.poll()
        state, requests = report.state, report.update.requests
        signal = stop_signal(requests)
        if signal is not None or report.last or self._due(state.step, requests):
            self._save(state)
        if signal is not None or report.last:
            # Not in `close`: after a failure this would wait for ranks that are gone.
            self._store.wait()
        if signal is not None:
            raise stop_error(signal, state.step)

    def _due(self, step: int, requests: Request) -> bool:
        on_cadence = self._every_steps is not None and step % self._every_steps == 0
        return on_cadence or bool(requests & Request.SAVE)


def with_memory(state: TrainState, observers: Iterable[Observer]) -> TrainState:
    """Return the state with that of every observer."""
    memory: dict[str, float] = {}
    for observer in observers:
        new = observer.memory()
        if taken := memory.keys() & new.keys():
            raise ValueError(f"two observers save the state {', '.join(sorted(taken))}; rename one")
        memory |= new
    return replace(state, observers=memory)


def with_evaluation_due(state: TrainState, report: StepReport) -> TrainState:
    """Return the state with the step's report, to be saved before the evaluation of the step."""
    numbers = {
        "loss": report.loss.item(),
        "grad_norm": report.update.grad_norm.item(),
        "applied": float(report.update.applied),
        "lr": report.lr,
        "loss_scale": report.update.loss_scale,
    }
    due = {
        f"{_DUE}{name}": value
        for name, value in numbers.items()
        if value is not None and math.isfinite(value)
    }
    return replace(state, observers={**state.observers, **due})


def evaluation_due(state: TrainState, max_steps: int) -> StepReport | None:
    """Return the report that `with_evaluation_due` has stored, if any."""
    # `last` is computed again: a resume may have changed max_steps.
    due = {k.removeprefix(_DUE): v for k, v in state.observers.items() if k.startswith(_DUE)}
    last = state.step == max_steps or state.stopped is not None
    return report_of(state, due, last=last) if due else None


def report_of(state: TrainState, numbers: Mapping[str, float], *, last: bool) -> StepReport:
    """Return the report of a step from its stored numbers, without its window."""
    update = UpdateStats(
        torch.tensor(numbers.get("grad_norm", math.nan)),
        applied=bool(numbers.get("applied", 1)),
        loss_scale=numbers.get("loss_scale"),
    )
    loss = torch.tensor(numbers.get("loss", math.nan))
    return StepReport(state, Window([], 0, 0), loss, update, numbers.get("lr"), {}, last)


def without_evaluation_due(state: TrainState) -> TrainState:
    """Return the state as if the evaluation of its step were done and logged."""
    kept = {k: v for k, v in state.observers.items() if not k.startswith((_DUE, _LOGGED))}
    return replace(state, observers=kept)
