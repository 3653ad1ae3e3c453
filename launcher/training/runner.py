"""Build and execute a run on every rank; load its model afterwards."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from launcher.checkpoint import load_tensors
from launcher.config.schema import RunConfig
from launcher.contracts import (
    CheckpointStore,
    ExportTarget,
    TrainState,
    World,
    named_tensors,
)
from launcher.errors import CheckpointError, ConfigError, Problem
from launcher.model import build_module
from launcher.run_dir import RunDir, write_atomically
from launcher.training import rng
from launcher.training.execution import Execution
from launcher.training.exporting import export_model, restore_task
from launcher.training.failures import closing, out_of_memory_context
from launcher.training.finite import check_weights, param_names
from launcher.training.parts import Data, Parts, build
from launcher.training.requests import RankRequests, stop_error, stop_signal
from launcher.training.saving import without_evaluation_due

if TYPE_CHECKING:
    from torch import nn


_log = logging.getLogger("trainctl.run")
_SMALLER_PARTS = (
    "choose a smaller model, an optimizer with less state or precision=bf16_pure; `trainctl config "
    "memory` says what they take"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a run that reached its last step.

    Attributes:
        state: The last state.
        scores: The last validation scores.
        references: Baselines of the scores.
        sample: Text that the model generated, if the task has some.
        best: The scores of the evaluation with the best objective, and its `step`.
        unread: Settings that this rank did not read.
    """

    state: TrainState
    scores: Mapping[str, float]
    references: Mapping[str, float]
    sample: str | None
    best: Mapping[str, float] = field(default_factory=dict)
    unread: Sequence[str] = ()


def run(
    config: RunConfig,
    run_dir: RunDir,
    world: World,
    stop: Callable[[], Signals | None],
    beat: Callable[[str, int], None],
    *,
    data: Data | None = None,
) -> Outcome:
    """Run this rank, from the newest checkpoint if there is one.

    Args:
        config: The resolved config.
        run_dir: The run directory.
        world: Rank, device and mesh of this process.
        stop: Returns the signal that requested the end of the run, or None.
        beat: Called with the phase (`step`, `evaluate`, `save`, `end`) and the steps done whenever
            the rank has made progress.
        data: What `read_data` returned for the config; None to read it.
    """
    rng.seed_everything(config.seed)
    with contextlib.ExitStack() as stack:
        with out_of_memory_context(lambda: "before the first step", _SMALLER_PARTS):
            _check_base_model(config, run_dir, world)
            requests = RankRequests(stop, config.checkpoint.every_minutes)
            parts = build(config, world, requests, references=run_dir.references, data=data)
            stack.enter_context(closing(parts.engine.close))
            if world.rank == 0 and (learned := parts.task.learned()):
                write_atomically(run_dir.learned, json.dumps(learned, indent=1) + "\n")
            store = config.checkpoint.build(run_dir, world)
            stack.enter_context(closing(store.close))
            state = _restore(config, parts, store)
        # Agreed with the other ranks, which would wait for this one in the first step otherwise.
        if (signal := stop_signal(parts.engine.agree(requests()))) is not None:
            raise stop_error(signal, state.step)
        execution = Execution(
            config,
            run_dir,
            world,
            parts,
            store=store,
            state=state,
            requests=requests,
            beat=beat,
        )
        with closing(execution.close):
            state = execution.run()
            beat("end", state.step)
        if state.stopped is not None:
            _log.info("stopped after step %d: %s", state.step, state.stopped)
        sample = _export(config, run_dir, parts, store, state.step)
        return Outcome(state, execution.scores, parts.references, sample, execution.best)


def _check_base_model(config: RunConfig, run_dir: RunDir, world: World) -> None:
    """Record the files of the frozen weights, or refuse to continue on others."""
    # Checkpoints of an adapter do not have these weights: with others it would be a new start.
    if not config.adapter.is_active or world.rank:
        return
    found = dict(config.model.weights_fingerprint())
    try:
        known = json.loads(run_dir.base_model.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_atomically(run_dir.base_model, json.dumps(found, indent=1) + "\n")
        return
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run_dir.base_model}: cannot be read: {error}") from error
    changed = sorted(k for k in known.keys() | found.keys() if known.get(k) != found.get(k))
    if changed:
        raise CheckpointError(
            f"the weights of the base model have changed since the start of this run "
            f"({', '.join(changed)}), and the adapter was trained on the old ones; restore the "
            "files, or start a new run"
        )


def _restore(config: RunConfig, parts: Parts, store: CheckpointStore) -> TrainState:
    """Restore engine and generators from the newest checkpoint; return its state."""
    # Checked first, because `state()` allocates the optimizer's state, which a new run does not
    # need before its first step.
    if not store.has_any():
        return TrainState()
    snapshot = store.load(parts.engine.state())
    if snapshot is None:
        return TrainState()
    if snapshot.data_fingerprint != parts.train.fingerprint:
        stored = RunConfig.from_json(snapshot.config)
        if (stored.data, stored.task, stored.model) == (config.data, config.task, config.model):
            raise CheckpointError(
                f"the training data has changed since step {snapshot.step}: files were "
                "changed, added or removed; restore them, or start a new run"
            )
        _log.warning(
            "the data was changed on purpose: continuing at the sample position of the old data"
        )
    parts.engine.load_state(snapshot.engine)
    # A rank that did not exist when the checkpoint was saved keeps its generators as they were
    # seeded; torch's are seeded at each step.
    if snapshot.rng:
        rng.restore(snapshot.rng)
    state = TrainState.from_json(snapshot.train_state)
    if state.step > parts.max_steps:
        message = f"ends the run at step {parts.max_steps:,}, but it is at step {state.step:,}"
        raise ConfigError([Problem("max_epochs", f"{message}; set a later end")])
    if state.stopped is not None and snapshot.config != config.to_json():
        # With other settings the observer that stopped the run may decide otherwise.
        state = replace(without_evaluation_due(state), stopped=None)
    _log.info("resumed from step %d", state.step)
    return state


def _export(
    config: RunConfig, run_dir: RunDir, parts: Parts, store: CheckpointStore, step: int
) -> str | None:
    """Export the trained model, and return a sample of its output if the task has one."""
    # A text of growing length would be compiled again and again.
    with parts.engine.full_module() as module, config.compile.suspended():
        weights = {} if module is None else named_tensors(module)
        names = param_names(parts.module)
        check_weights(
            parts.engine,
            weights,
            names,
            step=step,
            purpose="exported",
            has_checkpoint=store.has_any,
        )
        if module is None:
            return None
        if config.checkpoint.export:

            def inputs() -> Mapping[str, Any]:
                return parts.task.forward_inputs(parts.train.micro_batch([0], 0).inputs)

            target = ExportTarget(
                folder=run_dir.export,
                write=partial(export_model, config, parts.task),
                inputs=inputs,
            )
            config.adapter.write(module, target)
        return parts.task.sample(module)


def load_model(config: RunConfig, checkpoint: Path, run_dir: RunDir | None = None) -> nn.Module:
    """Build a run's model on the CPU with the weights of a checkpoint, in evaluation mode."""
    task = config.task.build(config.model.build_tokenizer())
    if run_dir is not None:
        restore_task(task, run_dir)
    module = build_module(config.model, task.head, config.seed)
    adapter = config.adapter.adapt(module, task.head, config.seed)
    # The checkpoint has the parameters in the number format of training.
    config.precision.build("cpu").prepare(module)
    if adapter is not None:
        adapter.prepare(module)
    tensors = named_tensors(module)
    names = tensors if adapter is None else adapter.saved
    live = {f"model.{name}": tensors[name] for name in names}
    load_tensors(checkpoint, live)
    return module.eval()
