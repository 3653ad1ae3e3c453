"""The configured network without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from launcher.contracts import ModelOption


def skeleton(model: ModelOption) -> nn.Module:
    """The network on the meta device: names and shapes, and not a byte of weights.

    A model that would load its weights is built from its config instead: the shapes are the same.
    """
    import torch

    if "init" in type(model).model_fields:
        model = model.model_copy(update={"init": "random"})
    with torch.device("meta"):
        return model.build()
