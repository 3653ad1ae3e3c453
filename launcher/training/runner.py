"""Builds a run from its config, in order, and executes it: what every rank does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

from launcher.config import derive
from launcher.config.rules import unknown_scores
from launcher.config.schema import RunConfig
from launcher.contracts import (
    GROUPS,
    BatchPlan,
    CheckpointStore,
    Clipping,
    Engine,
    EngineParts,
    Observer,
    Option,
    Request,
    RunContext,
    Samples,
    Schedule,
    Snapshot,
    Task,
    TrainState,
    World,
    unrecorded,
)
from launcher.errors import CheckpointError, ConfigError, DataError, NonFinite
from launcher.model import build_module
from launcher.run_dir import RunDir
from launcher.training import rng
from launcher.training.batches import Windows
from launcher.training.closing import close_all, closing
from launcher.training.columns import check_columns
from launcher.training.evaluation import Evaluator
from launcher.training.loop import train
from launcher.training.observers import Beating, Progress, Recorder, Saver, stopped, with_memory
from launcher.training.out_of_memory import refusals_explained
from launcher.training.references import references_of
from launcher.training.requests import RankRequests, stop_signal

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger("trainctl.run")
_SMALLER_PARTS = (
    "choose a smaller model, an optimizer with less state or precision=bf16_pure; `trainctl config "
    "memory` says what they take"
)
_SMALLER_STEPS = (
    "lower accumulation.micro_batch_size (under accumulation=samples and tokens the global batch "
    "stays what it is), let accumulation=auto find it, or lower task.seq_len"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended that reached its last step.

    Attributes:
        state: The last state.
        scores: The last validation scores; empty where none were made.
        references: Baselines of the scores.
        sample: Text that the model generated, if the task has some.
        unread: Settings that this rank did not read.
    """

    state: TrainState
    scores: Mapping[str, float]
    references: Mapping[str, float]
    sample: str | None
    unread: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The live parts of a run that are made before its state is known."""

    task: Task
    train: Samples
    validation: Samples
    references: Mapping[str, float]
    plan: BatchPlan
    max_steps: int
    schedule: Schedule
    module: nn.Module
    engine: Engine


def run(
    config: RunConfig,
    run_dir: RunDir,
    world: World,
    stop: Callable[[], Signals | None],
    beat: Callable[[str, int], None],
) -> Outcome:
    """Run this rank's share: from the newest checkpoint if there is one, else from the beginning.

    Args:
        config: The resolved config.
        run_dir: Where the run's files are.
        world: This process's place among the ranks.
        stop: The signal that asked the run to end, or None.
        beat: Called with the phase (`step`, `evaluate`, `save`, `end`) and the steps done whenever
            the rank has made progress, so that the launcher can tell a hang.

    Raises:
        TrainctlError: The run cannot be built or executed, or was asked to end.
    """
    rng.seed_everything(config.seed)
    with contextlib.ExitStack() as stack:
        with refusals_explained(lambda: "before the first step", _SMALLER_PARTS):
            requests = RankRequests(stop, config.checkpoint.every_minutes)
            parts = build(config, world, requests, references=run_dir.references)
            stack.enter_context(closing(parts.engine.close))
            store = config.checkpoint.build(run_dir, world)
            stack.enter_context(closing(store.close))
            state = _restore(config, parts, store)
        # Not this rank's own signal: the others would wait for it in the first step.
        if (signal := stop_signal(parts.engine.agree(requests()))) is not None:
            raise stopped(signal, state.step)
        evaluate = _evaluator(config, parts, world, beat)
        progress = Progress(state)
        observers: list[Observer] = [progress]

        def snapshot(state: TrainState) -> Snapshot:
            beat("save", state.step)
            return _snapshot(config, parts, with_memory(state, observers))

        context = RunContext(
            run_dir=run_dir,
            world=world,
            start=state,
            max_steps=parts.max_steps,
            summary=_summary(config, run_dir, world, parts, state),
            recorder=lambda sinks: Recorder(
                sinks,
                every_steps=config.log_every_steps,
                start=state,
                evaluating=lambda: evaluate.seconds,
            ),
            saver=lambda every_steps: Saver(store, every_steps, snapshot, requests=requests),
        )
        with closing(lambda: close_all(observer.close for observer in reversed(observers))):
            for group in GROUPS:
                option: Option = getattr(config, group)
                observers += option.observers(context)
            observers.append(Beating(beat))
            beat("step", state.step)
            state = _train(
                config,
                parts,
                world,
                state,
                progress=progress,
                evaluate=evaluate,
                observers=observers,
            )
            if not evaluate.last:
                # A finished run that is resumed takes no step, but its result has scores.
                evaluate(state)
            beat("end", state.step)
        if state.stopped is not None:
            _log.info("stopped after step %d: %s", state.step, state.stopped)
        sample = _export(config, run_dir, parts)
        return Outcome(state, evaluate.last, parts.references, sample)


def build(
    config: RunConfig,
    world: World,
    requests: Callable[[], Request],
    *,
    references: Path | None = None,
) -> Parts:
    """Data, task, model and engine, in the order in which mistakes are cheapest to find.

    Args:
        config: The resolved config.
        world: This process's place among the ranks.
        requests: What this rank asks of all ranks, asked once per step.
        references: File of the task's baselines, which only rank 0 reads or computes; None for
            none: a trial shows no scores.

    Raises:
        TrainctlError: One of them cannot be built.
    """
    tokenizer = config.model.build_tokenizer()
    task = config.task.build(tokenizer)
    splits = config.data.build()
    check_columns(splits, task, task_kind=config.task.kind, data_kind=config.data.kind)
    train_samples = task.samples(splits.train)
    validation = task.samples(splits.validation)
    plan = derive.batch_plan(config)
    if len(train_samples) < plan.samples_per_step:
        raise DataError(
            f"the training set has {len(train_samples)} samples of up to {config.task.seq_len} "
            f"tokens, one step needs {plan.samples_per_step}: give more text, or a smaller "
            "accumulation or task.seq_len"
        )
    with unrecorded():
        problems = list(unknown_scores(config, task.metrics(validation).names))
    if problems:
        raise ConfigError(problems)
    horizon = derive.horizon(config, len(train_samples))
    schedule = derive.schedule(config, horizon)
    baselines: Mapping[str, float] = {}
    if references is not None and world.rank == 0:
        baselines = references_of(task, splits.validation, references)
    module = build_module(config.model, task.head, config.seed)
    engine = config.parallelism.build(
        EngineParts(
            module=module,
            task=task,
            optimizer=config.optimizer,
            precision=config.precision,
            clipping=Clipping(
                config.max_grad_norm, config.max_grad_value, config.max_grad_norm_per_parameter
            ),
            skip_nonfinite=config.on_nonfinite == "skip",
            world=world,
            plan=plan,
            requests=requests,
        )
    )
    return Parts(
        task=task,
        train=train_samples,
        validation=validation,
        references=baselines,
        plan=plan,
        max_steps=horizon.max_steps,
        schedule=schedule,
        module=module,
        engine=engine,
    )


def _restore(config: RunConfig, parts: Parts, store: CheckpointStore) -> TrainState:
    """The state to go on from; engine and generators are put where they were."""
    # Asked first: the state for a load has memory for the optimizer's state, a first start does not
    # need it before its first step.
    if not store.has_any():
        return TrainState()
    snapshot = store.load(parts.engine.state())
    if snapshot is None:
        return TrainState()
    if snapshot.data_fingerprint != parts.train.fingerprint:
        stored = RunConfig.from_json(snapshot.config)
        if (stored.data, stored.task, stored.model) == (config.data, config.task, config.model):
            raise CheckpointError(
                f"the training data is not what step {snapshot.step} was trained on: files were "
                "changed, added or removed since; restore them, or start a new run"
            )
        _log.warning("the data was changed on purpose: going on at sample position of the old data")
    parts.engine.load_state(snapshot.engine)
    # A rank that did not exist when the checkpoint was saved keeps the generators as this start has
    # seeded them; what a step draws from torch is seeded at each step.
    if snapshot.rng:
        rng.restore(snapshot.rng)
    state = TrainState.from_json(snapshot.train_state)
    if state.stopped is not None and snapshot.config != config.to_json():
        # Under other settings the observer that stopped the run may decide otherwise.
        state = replace(state, stopped=None)
    _log.info("resumed from step %d", state.step)
    return state


def _evaluator(
    config: RunConfig, parts: Parts, world: World, beat: Callable[[str, int], None]
) -> Evaluator:
    return Evaluator(
        world=world,
        engine=parts.engine,
        task=parts.task,
        samples=parts.validation,
        batch_size=parts.plan.micro_batch_size,
        every_steps=config.eval_every_steps,
        max_samples=config.eval_max_samples,
        max_steps=parts.max_steps,
        beat=beat,
    )


def _export(config: RunConfig, run_dir: RunDir, parts: Parts) -> str | None:
    """Export the trained model, and return a sample of its output if the task has one."""
    with parts.engine.full_module() as module:
        if module is None:
            return None
        if config.checkpoint.export:
            parts.task.export(module, run_dir.export)
        return parts.task.sample(module)


def _snapshot(config: RunConfig, parts: Parts, state: TrainState) -> Snapshot:
    return Snapshot(
        step=state.step,
        engine=parts.engine.state(),
        train_state=state.to_json(),
        rng=rng.capture(),
        config=config.to_json(),
        data_fingerprint=parts.train.fingerprint,
    )


def _summary(
    config: RunConfig, run_dir: RunDir, world: World, parts: Parts, state: TrainState
) -> list[tuple[str, str]]:
    """The header of the run: everything a person would check before going to bed."""
    params = sum(p.numel() for p in parts.module.parameters())
    plan = parts.plan
    epochs = parts.max_steps * plan.samples_per_step / len(parts.train)
    lines = [
        ("model", f"{config.model.kind}, {params:,} parameters"),
        (
            "data",
            f"{config.data.kind}, {len(parts.train):,} samples, {len(parts.validation):,} held out",
        ),
        ("engine", f"{config.parallelism.kind} on {world.device}, {config.precision.kind}"),
        ("optimizer", f"{config.optimizer.kind}, schedule {config.scheduler.kind}"),
        ("batch", str(plan)),
        ("steps", f"{parts.max_steps:,} ({epochs:.2f} epochs)"),
        ("run", str(run_dir.path)),
    ]
    if parts.references:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in parts.references.items())
        lines.insert(2, ("held out", figures))
    if state.step:
        lines.append(("resumed", f"from step {state.step:,}"))
    return lines


def _train(
    config: RunConfig,
    parts: Parts,
    world: World,
    state: TrainState,
    *,
    progress: Progress,
    evaluate: Evaluator,
    observers: Sequence[Observer],
) -> TrainState:
    windows = Windows(
        parts.train,
        parts.plan,
        seed=config.seed,
        data_rank=world.data_rank,
        start=state.samples,
        stop=derive.max_samples(config, len(parts.train)),
    )
    here = refusals_explained(lambda: f"step {progress.state.step + 1}", _SMALLER_STEPS)
    with here, _explained(progress, parts.train):
        return train(
            parts.engine,
            windows,
            parts.schedule,
            state,
            max_steps=parts.max_steps,
            seed_step=partial(rng.seed_step, config.seed, world.data_rank),
            evaluate=evaluate,
            observers=observers,
        )


@contextlib.contextmanager
def _explained(progress: Progress, samples: Samples) -> Iterator[None]:
    """Say of an error in a step which step it was, and which samples it met."""
    try:
        yield
    except NonFinite as error:
        places = [samples.describe(index) for index in error.indices[:4]]
        more = f" and {len(error.indices) - 4} more" if len(error.indices) > 4 else ""
        raise NonFinite(
            f"step {progress.state.step + 1}: {error}; weights and optimizer are as before the "
            f"step; the samples were {', '.join(places)}{more}",
            error.indices,
        ) from error
