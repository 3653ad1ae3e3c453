"""Training loop, independent of engine, precision and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from launcher.contracts import Engine, Observer, Schedule, StepReport, TrainState, Window


def train(
    engine: Engine,
    windows: Iterator[Window],
    schedule: Schedule,
    state: TrainState,
    *,
    max_steps: int,
    seed_step: Callable[[int], None],
    evaluate: Callable[[StepReport], Mapping[str, float]],
    observers: Sequence[Observer],
    unfinished: StepReport | None = None,
) -> TrainState:
    """Train until `max_steps` optimizer steps are done, and return the state after the last one.

    Args:
        engine: Owns module, optimizer and collectives.
        windows: One window per optimizer step, from `state.samples` on.
        schedule: Learning rate of every step.
        state: The state that the run starts from.
        max_steps: Optimizer steps of the whole run, including those before `state`.
        seed_step: Seeds dropout of a step, given the number of steps done.
        evaluate: Returns validation scores after a step; empty when none is due.
        observers: Called in order after each step. One that returns a `Stop` ends the run after
            the step, which the following observers still see as the last one.
        unfinished: Report of the step that led to `state`, if it was saved before its evaluation.
    """
    if unfinished is not None:
        state = _finish(unfinished, schedule, evaluate, observers)
    while state.step < max_steps and state.stopped is None:
        window = next(windows)
        # For each step, so that a resumed run draws the same dropout on any number of ranks.
        seed_step(state.step)
        lr = schedule.lr(state.step, state.memory)
        loss = engine.forward_backward(window)
        update = engine.update(lr)
        state = state.advance(window, update)
        report = StepReport(state, window, loss, update, lr, {}, state.step == max_steps)
        state = _finish(report, schedule, evaluate, observers)
    return state


def _finish(
    report: StepReport,
    schedule: Schedule,
    evaluate: Callable[[StepReport], Mapping[str, float]],
    observers: Sequence[Observer],
) -> TrainState:
    state = report.state
    if scores := evaluate(report):
        if state.stopped is None:  # otherwise the schedule has seen this step's scores
            state = state.update_memory(schedule.observe(state.memory, scores, state.step))
        report = replace(report, state=state, scores=scores)
    for observer in observers:
        stop = observer(report)
        if stop is not None and not report.last:
            # The observers that follow, which log and save, must see the final scores.
            state = state.stop(stop.reason)
            report = replace(report, state=state, last=True)
            report = replace(report, scores=evaluate(report))
    return state
