"""Build the parts of a run from its config."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from launcher.config import derive
from launcher.config.columns import missing_column
from launcher.config.rules import unknown_scores
from launcher.config.schema import RunConfig
from launcher.contracts import (
    Adapted,
    BatchPlan,
    Clipping,
    Column,
    DataSplits,
    Engine,
    EngineParts,
    Head,
    InitialWeights,
    ModelOption,
    Records,
    Request,
    Samples,
    Schedule,
    Task,
    TrainState,
    World,
    unrecorded,
)
from launcher.errors import ConfigError, DataError
from launcher.model import attention_of, build_meta_module, build_module
from launcher.run_dir import RunDir, write_atomically
from launcher.training.batches import Windows

if TYPE_CHECKING:
    from torch import nn


_log = logging.getLogger("trainctl.run")
# Interval at which the other ranks look for the file with the baselines.
_POLL_S = 0.05
# Steps over which the header averages the share of padding.
_PADDING_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Live parts of a run."""

    task: Task
    train: Samples
    validation: Samples
    references: Mapping[str, float]
    plan: BatchPlan
    max_steps: int
    schedule: Schedule
    module: nn.Module
    engine: Engine


@dataclass(frozen=True, slots=True)
class Data:
    """The task and its encoded examples; runs of the same data, task and tokenizer can share it."""

    task: Task
    train: Samples
    validation: Samples
    held_out: Records


def read_data(config: RunConfig, max_records: int | None = None) -> Data:
    """Read and encode the data of a config.

    Args:
        config: The resolved config.
        max_records: Most records of each part; None for all.

    Raises:
        TrainctlError: The data cannot be read.
    """
    tokenizer = config.model.build_tokenizer()
    task = config.task.build(tokenizer)
    splits = config.data.build()
    check_columns(
        splits,
        task,
        task_kind=config.task.kind,
        data_kind=config.data.kind,
        specs=config.task.column_specs(),
    )
    train, held_out = splits.train, splits.validation
    if max_records is not None:
        train, held_out = FirstRecords(train, max_records), FirstRecords(held_out, max_records)
    return Data(task, task.samples(train), task.samples(held_out), held_out)


class FirstRecords(Records):
    """The first records of a source."""

    def __init__(self, records: Records, count: int) -> None:
        self._records = records
        self._count = min(count, len(records))
        self.columns = records.columns
        self.fingerprint = f"{records.fingerprint}, first {self._count}"

    @override
    def __len__(self) -> int:
        return self._count

    @override
    def record(self, index: int) -> Mapping[str, Any]:
        return self._records.record(index)

    @override
    def describe(self, index: int) -> str:
        return self._records.describe(index)


def build(
    config: RunConfig,
    world: World,
    requests: Callable[[], Request],
    *,
    references: Path | None = None,
    data: Data | None = None,
) -> Parts:
    """Build data, task, model and engine.

    Args:
        config: The resolved config.
        world: Rank, device and mesh of this process.
        requests: Returns this rank's requests to all ranks, once per step.
        references: File of the task's baselines; None for no baselines, as in a trial.
        data: What `read_data` returned for a config with the same data, task and tokenizer.
    """
    # The cheapest first: a mistake in the data is reported before a large model is built.
    data = data or read_data(config)
    task, validation = data.task, data.validation
    plan = derive.batch_plan(config)
    train_samples = _training_samples(config, data, plan)
    with unrecorded():
        problems = list(unknown_scores(config, task.metrics(validation).names))
    if problems:
        raise ConfigError(problems)
    horizon = derive.horizon(config, len(train_samples))
    schedule = derive.schedule(config, horizon)
    baselines: Mapping[str, float] = {}
    if references is not None:
        baselines = references_of(task, data.held_out, references, rank=world.rank)
    module, weights, adapter = _build_network(config, world, task)
    # An engine may check the network with its weights: not worth a compilation.
    with config.compile.suspended():
        engine = _build_engine(
            config,
            world,
            requests,
            module=module,
            weights=weights,
            task=task,
            plan=plan,
            adapter=adapter,
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


def _training_samples(config: RunConfig, data: Data, plan: BatchPlan) -> Samples:
    found = config.batching.samples(
        data.train,
        data.task,
        seq_len=config.task.seq_len,
        network=partial(_small_network, config, data.task.head),
    )
    if len(found) < plan.samples_per_step:
        raise DataError(
            f"the training set has {len(found)} samples of up to {config.task.seq_len} tokens, "
            f"one step needs {plan.samples_per_step}: give more text, or a smaller accumulation "
            "or task.seq_len"
        )
    return found


def _small_network(config: RunConfig, head: Head) -> nn.Module:
    with tempfile.TemporaryDirectory(prefix="trainctl-") as folder:
        option = config.model.shrunk(Path(folder), config.task.seq_len)
        return build_module(option, head, config.seed)


def _build_network(
    config: RunConfig, world: World, task: Task
) -> tuple[nn.Module, InitialWeights | None, Adapted | None]:
    # The weights that an adapter starts from depend on those of the network.
    takes_meta = config.parallelism.takes_meta_module(world.size) and not config.adapter.is_active
    build_network = build_meta_module if takes_meta else _build_whole
    module, weights = build_network(config.model, task.head, config.seed)
    adapter = config.adapter.adapt(module, task.head, config.seed)
    task.prepare_module(module)
    if world.rank == 0 and (attention := attention_of(module)) is not None:
        _log.info("attention: %s", attention)
    # In this order: what is compiled recomputes, and what is sharded is compiled.
    config.activation.apply(module)
    config.compile.apply(module)
    return module, weights, adapter


def _build_whole(option: ModelOption, head: Head, seed: int) -> tuple[nn.Module, None]:
    return build_module(option, head, seed), None


def _build_engine(
    config: RunConfig,
    world: World,
    requests: Callable[[], Request],
    *,
    module: nn.Module,
    weights: InitialWeights | None,
    task: Task,
    plan: BatchPlan,
    adapter: Adapted | None,
) -> Engine:
    return config.parallelism.build(
        EngineParts(
            module=module,
            task=task,
            optimizer=derive.optimizer(config),
            adapter=adapter,
            precision=config.precision,
            clipping=Clipping(
                config.max_grad_norm, config.max_grad_value, config.max_grad_norm_per_parameter
            ),
            skip_nonfinite=config.on_nonfinite == "skip",
            world=world,
            plan=plan,
            requests=requests,
            weights=weights,
            ema=config.ema,
            auxiliary_losses=partial(config.model.auxiliary_losses, module),
        )
    )


def check_columns(
    splits: DataSplits,
    task: Task,
    *,
    task_kind: str,
    data_kind: str,
    specs: Sequence[Column] = (),
) -> None:
    """Raise DataError if records lack a column of the task."""
    by_name = {spec.name: spec for spec in specs}
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, records in parts.items():
        if records is None:
            continue
        if missing := [column for column in task.columns if column not in records.columns]:
            if spec := by_name.get(missing[0]):
                raise missing_column(spec, records.columns, f"the {name} part of data={data_kind}")
            raise DataError(
                f"task={task_kind} needs the columns {', '.join(task.columns)}, but the {name} "
                f"part of data={data_kind} has no {', '.join(missing)} (it has: "
                f"{', '.join(records.columns) or 'none'}); choose another data or task"
            )


def references_of(
    task: Task, records: Records, path: Path, *, rank: int = 0
) -> Mapping[str, float]:
    """Return the task's baselines on held-out records, from the file at `path` if it has them."""
    # Computed by rank 0 only, and once per run. The other ranks poll the file: in a collective they
    # would give up after launch.timeout_s, but a task may compute for longer.
    while (kept := _kept_references(path, records)) is None:
        if rank == 0:
            found = dict(task.references(records))
            values = {"fingerprint": records.fingerprint, "references": found}
            write_atomically(path, json.dumps(values, indent=1) + "\n")
            return found
        time.sleep(_POLL_S)
    return kept


def _kept_references(path: Path, records: Records) -> Mapping[str, float] | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        fits = stored["fingerprint"] == records.fingerprint
        return dict(stored["references"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def windows_of(config: RunConfig, parts: Parts, world: World, *, start: int = 0) -> Windows:
    """Return the windows of a rank, from a number of seen samples on."""
    return Windows(
        parts.train,
        parts.plan,
        config.batching,
        seed=config.seed,
        data_rank=world.data_rank,
        start=start,
        stop=derive.max_samples(config, len(parts.train)),
    )


def _padding_line(config: RunConfig, parts: Parts, world: World) -> list[tuple[str, str]]:
    windows = windows_of(config, parts, world)
    if not windows.pads:
        return []
    share = windows.expected_padding(min(_PADDING_STEPS, parts.max_steps))
    return [("padding", f"{share:.1%} of the tokens of a step (batching={config.batching.kind})")]


def summary(
    config: RunConfig, run_dir: RunDir, world: World, parts: Parts, state: TrainState
) -> list[tuple[str, str]]:
    """Return the header that is printed before the first step: (label, text) in order."""
    params = sum(p.numel() for p in parts.module.parameters())
    trained = sum(p.numel() for p in parts.module.parameters() if p.requires_grad)
    only = "" if trained == params else f", {trained:,} of them trained"
    plan = parts.plan
    epochs = parts.max_steps * plan.samples_per_step / len(parts.train)
    held_out = len(parts.validation)
    limit = config.final_eval_max_samples
    scored = f" ({limit:,} of them scored at the end)" if limit and limit < held_out else ""
    lines = [
        ("model", f"{config.model.kind}, {params:,} parameters{only}"),
        (
            "data",
            f"{config.data.kind}, {len(parts.train):,} samples, {held_out:,} held out{scored}",
        ),
        ("engine", f"{config.parallelism.kind} on {world.device}, {config.precision.kind}"),
        ("optimizer", f"{config.optimizer.kind}, schedule {config.scheduler.kind}"),
        ("batch", str(plan)),
        *_padding_line(config, parts, world),
        ("steps", f"{parts.max_steps:,} ({epochs:.2f} epochs)"),
        ("run", str(run_dir.path)),
    ]
    if parts.references:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in parts.references.items())
        lines.insert(2, ("held out", figures))
    if state.step:
        lines.append(("resumed", f"from step {state.step:,}"))
    return lines
