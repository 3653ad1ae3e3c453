"""Loads the model of a run, for the Python API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launcher.checkpoint import load_tensors
from launcher.contracts import named_tensors
from launcher.model import build_module

if TYPE_CHECKING:
    from torch import nn

    from launcher.config.schema import RunConfig


def load_model(config: RunConfig, checkpoint: Path) -> nn.Module:
    """Build a run's model on the CPU with the weights of a checkpoint, in evaluation mode.

    Args:
        config: The run's config.
        checkpoint: Folder of a published checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged, or of another model.
    """
    task = config.task.build(config.model.build_tokenizer())
    module = build_module(config.model, task.head, config.seed)
    # The checkpoint holds the parameters in the format in which they were trained.
    config.precision.build("cpu").prepare(module)
    live = {f"model.{name}": tensor for name, tensor in named_tensors(module).items()}
    load_tensors(checkpoint, live)
    return module.eval()
