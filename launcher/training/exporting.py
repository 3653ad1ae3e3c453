"""Export a trained model in the format of transformers, from a live one or from a checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from launcher.checkpoint import SavedCheckpoint, file_backed
from launcher.config.schema import RunConfig
from launcher.contracts import OptimizerTarget, Task, canonical_name, named_tensors, param_of
from launcher.errors import CheckpointError, DataError, Diverged
from launcher.model import cast_parameters, replace_tensors
from launcher.run_dir import RunDir
from launcher.training.finite import nonfinite, param_names
from launcher.training.parts import read_data

if TYPE_CHECKING:
    from launcher.contracts import DType

# Heads whose outputs are the labels of the data.
_LABELLED = frozenset({"sequence_classification", "token_classification"})
_NAMED = 5

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


def export_model(
    config: RunConfig,
    task: Task,
    module: nn.Module,
    folder: Path,
    *,
    dtype: DType | None = None,
    allocate: Allocate | None = None,
) -> None:
    """Cast a model's weights to the format of its export, and write it.

    Args:
        config: The run's config.
        task: The run's task.
        module: The whole model; its parameters are cast in place.
        folder: Where to write; replaced if it exists.
        dtype: Number format of the weights; None for the config's.
        allocate: Returns memory for a cast tensor; None for the host's.
    """
    chosen = dtype or config.checkpoint.export_dtype
    target = config.model.source_dtype() if chosen == "source" else chosen
    if target is not None:
        cast_parameters(module, target, allocate)
    task.export(module, folder)


def export_checkpoint(path: Path, folder: Path, dtype: DType | None = None) -> None:
    """Write what the run would have exported at a checkpoint, byte for byte.

    The weights lie in files next to `folder` meanwhile, and pass through memory tensor by tensor.

    Args:
        path: The checkpoint, written by any engine on any number of ranks.
        folder: The new folder.
        dtype: Number format of the weights; None for the config's `checkpoint.export_dtype`.

    Raises:
        CheckpointError: The checkpoint is damaged or of another model, the disk is full, or the
            folder exists.
        Diverged: A weight is not finite.
    """
    saved = SavedCheckpoint(path)
    if folder.exists():
        raise CheckpointError(f"{folder} exists already: give a folder that does not")
    saved.verify()
    config = RunConfig.from_json(saved.config)
    if config.adapter.is_active:
        raise CheckpointError(
            f"{path}: has only the weights of adapter={config.adapter.kind}; the run exports them "
            "when it ends: `trainctl resume RUN_DIR max_steps=STEP` ends it at a step"
        )
    task = _task(config, RunDir(path.parent.parent))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=folder.parent) as scratch:
        allocate = partial(file_backed, folder=Path(scratch))
        module = config.model.build(task.head, "meta")
        live = _allocate_saved(module, saved, allocate)
        saved.fill(live)
        _use_evaluation_weights(config, module, saved, allocate)
        if bad := nonfinite(named_tensors(module), param_names(module)):
            raise Diverged(
                f"{path}: the weights are not finite ({', '.join(bad[:_NAMED])}): they are not "
                "exported; export an earlier checkpoint"
            )
        export_model(config, task, module.eval(), folder, dtype=dtype, allocate=allocate)


def restore_task(task: Task, run_dir: RunDir) -> None:
    """Set what the task of a run took from its training records."""
    try:
        task.restore(json.loads(run_dir.learned.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return  # nothing was taken
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run_dir.learned}: is damaged: {error}") from error


def _task(config: RunConfig, run_dir: RunDir) -> Task:
    """Build the task of a run, with its labels if it has some."""
    task = config.task.build(config.model.build_tokenizer())
    if run_dir.learned.exists():
        restore_task(task, run_dir)
    elif task.head.name in _LABELLED:
        # The checkpoint was copied out of its run.
        task = read_data(config).task
    return task


def _allocate_saved(
    module: nn.Module, saved: SavedCheckpoint, allocate: Allocate
) -> Mapping[str, Tensor]:
    """Give tensors on the meta device memory in their saved formats; return all by saved name."""
    kinds = saved.describe()
    tensors = module.state_dict(keep_vars=True)
    replaced: dict[Tensor, Tensor] = {}
    for name, tensor in tensors.items():
        found = kinds.get(f"model.{canonical_name(name)}")
        # A tied tensor is saved by its first name; what does not fit is reported by `fill`.
        if found is not None and tensor.is_meta and tensor not in replaced:
            memory = allocate(tuple(tensor.shape), found[1])
            if isinstance(tensor, nn.Parameter):
                memory = nn.Parameter(memory, requires_grad=tensor.requires_grad)
            replaced[tensor] = memory
    replace_tensors(module, replaced)
    return {f"model.{name}": tensor for name, tensor in named_tensors(module).items()}


def _use_evaluation_weights(
    config: RunConfig, module: nn.Module, saved: SavedCheckpoint, allocate: Allocate
) -> None:
    """Replace the trained weights by those for evaluation, if the optimizer has others."""
    optimizer = config.optimizer.build(OptimizerTarget(module, "cpu"))
    if not hasattr(optimizer, "eval"):
        return
    params = {canonical_name(name): param for name, param in module.named_parameters()}
    if small := [name for name, param in params.items() if param.itemsize < torch.float32.itemsize]:
        raise CheckpointError(
            f"{saved.path}: optimizer={config.optimizer.kind} evaluates other weights than it "
            f"trains, and with precision={config.precision.kind} they cannot be computed outside "
            f"of the run ({small[0]} is {params[small[0]].dtype}); resume the run, which exports"
        )
    # Without state it changes no weight: checkpoints have those of training.
    optimizer.train()  # type: ignore[attr-defined] # `OptimizerOption.build` describes it
    live: dict[str, Tensor] = {}
    for entry, (shape, dtype) in saved.describe().items():
        name = param_of(entry, params) if entry.startswith("optimizer.") else None
        if name is not None and shape == tuple(params[name].shape):
            live[entry] = memory = allocate(shape, dtype)
            optimizer.state[params[name]][entry.removeprefix(f"optimizer.{name}.")] = memory
    saved.fill(live)
    optimizer.eval()
