"""Run the training loop of a run whose parts are built, with its observers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from launcher.config.schema import RunConfig
from launcher.contracts import (
    GROUPS,
    CheckpointStore,
    Observer,
    Option,
    RunContext,
    Samples,
    Sink,
    Snapshot,
    StepReport,
    TrainState,
    World,
)
from launcher.errors import Diverged, NonFinite
from launcher.run_dir import RunDir
from launcher.training import rng
from launcher.training.evaluation import Evaluator
from launcher.training.failures import close_all, out_of_memory_context
from launcher.training.finite import SkipLimit, check_weights, param_names
from launcher.training.loop import train
from launcher.training.metrics import Recorder, RowBuilder
from launcher.training.parts import Parts, summary, windows_of
from launcher.training.progress import BestScores, Heartbeats, Progress
from launcher.training.requests import RankRequests
from launcher.training.saving import (
    Saver,
    evaluation_due,
    report_of,
    with_evaluation_due,
    with_memory,
    without_evaluation_due,
)

_SMALLER_STEPS = (
    "lower accumulation.micro_batch_size (under accumulation=samples and tokens the global batch "
    "stays what it is), let accumulation=auto find it, or lower task.seq_len"
)


class Execution:
    """State that the loop, the observers and the saves of a run share."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        world: World,
        parts: Parts,
        *,
        store: CheckpointStore,
        state: TrainState,
        requests: RankRequests,
        beat: Callable[[str, int], None],
    ) -> None:
        self._config, self._run_dir, self._world, self._parts = config, run_dir, world, parts
        self._store, self._requests, self._beat = store, requests, beat
        self._saved_step = state.step
        self._evaluate = Evaluator(
            world=world,
            engine=parts.engine,
            task=parts.task,
            samples=parts.validation,
            batch_size=parts.plan.micro_batch_size,
            every_steps=config.eval_every_steps,
            max_samples=config.eval_max_samples,
            final_max_samples=config.final_eval_max_samples,
            beat=beat,
            requests=requests,
            save=self._save_unevaluated,
            interrupted=self._log_interrupted,
            compiling=lambda: config.compile.seconds,
        )
        self._unfinished = evaluation_due(state, parts.max_steps)
        # The row of a step that is evaluated again is written again.
        self._logged_step = state.step
        if self._unfinished is not None and self._evaluate.due(self._unfinished):
            self._logged_step -= 1
        elif self._unfinished is not None:
            # The run is longer now, or evaluates at other steps: the step has its row, but no
            # observer has saved that it has seen the step.
            state = without_evaluation_due(state)
            self._unfinished = replace(self._unfinished, state=state)
        self._state = state
        self._windows = windows_of(config, parts, world, start=state.samples)
        self._rows = RowBuilder(
            every_steps=config.log_every_steps,
            start=state,
            logged_step=self._logged_step,
            evaluating=lambda: self._evaluate.seconds,
            compiling=lambda: config.compile.seconds,
            padding=lambda: self._windows.padding,
        )
        self._progress = Progress(state)
        self._best = BestScores(config.objective, config.objective_mode, state.observers)
        # First the observers whose results others read: progress for errors, rows for recorders.
        self._observers: list[Observer] = [
            self._progress,
            self._rows,
            self._best,
            SkipLimit(config.max_consecutive_skips, state),
        ]
        self._recorders: list[Recorder] = []

    @property
    def scores(self) -> Mapping[str, float]:
        """Last validation scores."""
        return self._evaluate.last

    @property
    def best(self) -> Mapping[str, float]:
        """Scores with the best objective, and their `step`; empty without an evaluation."""
        return self._best.scores

    def run(self) -> TrainState:
        """Train to the last step, and evaluate it."""
        context = RunContext(
            run_dir=self._run_dir,
            world=self._world,
            start=self._state,
            logged_step=self._logged_step,
            max_steps=self._parts.max_steps,
            summary=summary(self._config, self._run_dir, self._world, self._parts, self._state),
            config=json.loads(self._config.to_json()),
            recorder=self._make_recorder,
            saver=lambda every_steps: Saver(self._store, every_steps, self._save),
        )
        for group in GROUPS:
            option: Option = getattr(self._config, group)
            self._observers += option.observers(context)
        self._observers.append(Heartbeats(self._beat))
        self._beat("step", self._state.step)
        state = self._train()
        if not self._evaluate.last:
            # A finished run that is resumed takes no step, but its result has scores.
            self._evaluate(report_of(state, {}, last=True))
        return state

    def close(self) -> None:
        """Close every observer, even if one fails."""
        close_all(observer.close for observer in reversed(self._observers))

    def _train(self) -> TrainState:
        config, parts, progress = self._config, self._parts, self._progress
        here = out_of_memory_context(lambda: f"step {progress.state.step + 1}", _SMALLER_STEPS)
        with here, config.compile.explained(), _describing_samples(progress, parts.train):
            return train(
                parts.engine,
                self._windows,
                parts.schedule,
                self._state,
                max_steps=parts.max_steps,
                seed_step=partial(rng.seed_step, config.seed, self._world.data_rank),
                evaluate=self._evaluate,
                observers=self._observers,
                unfinished=self._unfinished,
            )

    def _make_recorder(self, sinks: Sequence[Sink]) -> Observer:
        recorder = Recorder(sinks, self._rows)
        self._recorders.append(recorder)
        self._evaluate.watchers.append(recorder.show_evaluation)
        return recorder

    def _save(self, state: TrainState, due: StepReport | None = None) -> None:
        """Save the state of a step once."""
        # Interval, request of a rank and last step may coincide.
        if state.step == self._saved_step:
            return
        self._beat("save", state.step)
        engine = self._parts.engine.state()
        # Checked before saving: retention would replace the last good checkpoints by bad ones.
        weights = {name: value for name, value in engine.items() if name.startswith("model.")}
        params = {f"model.{name}" for name in param_names(self._parts.module)}
        check_weights(
            self._parts.engine,
            weights,
            params,
            step=state.step,
            purpose="saved",
            has_checkpoint=self._store.has_any,
        )
        state = with_memory(state, self._observers)
        if due is not None:
            state = with_evaluation_due(state, due)
        self._store.save(
            Snapshot(
                step=state.step,
                engine=engine,
                train_state=state.to_json(),
                rng=rng.capture(),
                config=self._config.to_json(),
                data_fingerprint=self._parts.train.fingerprint,
            )
        )
        self._saved_step = state.step
        self._requests.saved()

    def _save_unevaluated(self, report: StepReport) -> None:
        self._save(report.state, due=report)

    def _log_interrupted(self, report: StepReport) -> None:
        """Log a step whose evaluation a signal ended; other observers see it on resume."""
        self._store.wait()
        self._rows(report)
        for recorder in self._recorders:
            recorder(report)


@contextlib.contextmanager
def _describing_samples(progress: Progress, samples: Samples) -> Iterator[None]:
    """Add the step and its samples to the message of an error."""
    try:
        yield
    except Diverged:
        raise
    except NonFinite as error:
        places = [samples.describe(index) for index in error.indices[:4]]
        more = f" and {len(error.indices) - 4} more" if len(error.indices) > 4 else ""
        raise NonFinite(
            f"step {progress.state.step + 1}: {error}; weights and optimizer are as before the "
            f"step; the samples were {', '.join(places)}{more}",
            error.indices,
        ) from error
