"""The training loop, independent of engine, precision and ranks."""

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
    """Train until `max_steps` optimizer steps are done.

    Args:
        engine: Owns module, optimizer and collectives.
        windows: One window per optimizer step, from `state.samples` on.
        schedule: The learning rate of every step.
        state: The state that the run starts from; step 0 for a new run.
        max_steps: Optimizer steps of the whole run, those before `state` included.
        seed_step: Seeds what a step draws (dropout), given the number of steps done.
        evaluate: Validation scores after a step; empty when none is due.
        observers: Called in order after each step. One that returns a `Stop` ends the run after
            the step; those behind it, and the evaluation after the last step, still see it.
        unfinished: Report of the step that led to `state`, if it was saved before its evaluation.

    Returns:
        The state after the last step.
    """
    if unfinished is not None:
        state = _finish(unfinished, schedule, evaluate, observers)
    while state.step < max_steps and state.stopped is None:
        window = next(windows)
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
    """Evaluate a step if that is due, and pass its report to the observers."""
    state = report.state
    if scores := evaluate(report):
        if state.stopped is None:  # otherwise the schedule has seen this step's scores
            state = state.update_memory(schedule.observe(state.memory, scores, state.step))
        report = replace(report, state=state, scores=scores)
    for observer in observers:
        stop = observer(report)
        if stop is not None and not report.last:
            state = state.stop(stop.reason)
            report = replace(report, state=state, last=True)
            report = replace(report, scores=evaluate(report))
    return state
