"""The configured network without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from launcher.config.schema import RunConfig


def meta_module(config: RunConfig) -> nn.Module:
    """Build the network of a config on the meta device: names and shapes, no weights."""
    from launcher.contracts import Head

    return config.model.build(Head(config.task.head), "meta")
