"""The training loop. It knows no engine, precision or rank."""

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
    evaluate: Callable[[TrainState], Mapping[str, float]],
    observers: Sequence[Observer],
) -> TrainState:
    """Train until `max_steps` optimizer steps are done.

    Args:
        engine: Owns module, optimizer and collectives.
        windows: One window per optimizer step, from `state.samples` on.
        schedule: The learning rate of every step.
        state: Where the run stands; step 0 for a new run.
        max_steps: Optimizer steps of the whole run, those before `state` included.
        seed_step: Seeds what a step draws (dropout), given the number of steps done.
        evaluate: Validation scores after a step; empty when none is due.
        observers: Called in order after each step. One that returns a `Stop` ends the run after
            the step; those behind it, and an evaluation of all held-out samples, still see it.

    Returns:
        The state after the last step.
    """
    while state.step < max_steps and state.stopped is None:
        window = next(windows)
        seed_step(state.step)
        lr = schedule.lr(state.step, state.memory)
        loss = engine.forward_backward(window)
        update = engine.update(lr)
        state = state.advance(window, update)
        scores = evaluate(state)
        if scores:
            state = state.remember(schedule.observe(state.memory, scores, state.step))
        report = StepReport(state, window, loss, update, lr, scores, state.step == max_steps)
        for observer in observers:
            stop = observer(report)
            if stop is not None and not report.last:
                state = state.stop(stop.reason)
                report = replace(report, state=state, scores=evaluate(state), last=True)
    return state
