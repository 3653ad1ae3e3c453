"""The live parts of a run, built from its config in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config import derive
from launcher.config.rules import unknown_scores
from launcher.config.schema import RunConfig
from launcher.contracts import (
    BatchPlan,
    Clipping,
    Engine,
    EngineParts,
    Request,
    Samples,
    Schedule,
    Task,
    World,
    unrecorded,
)
from launcher.errors import ConfigError, DataError
from launcher.model import build_module
from launcher.training.columns import check_columns
from launcher.training.references import references_of

if TYPE_CHECKING:
    from torch import nn


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
        references: File of the task's baselines, which only rank 0 computes; None for
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
    if references is not None:
        baselines = references_of(task, splits.validation, references, rank=world.rank)
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
            auxiliary_losses=partial(config.model.auxiliary_losses, module),
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
