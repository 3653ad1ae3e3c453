"""8-bit optimizers from bitsandbytes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from bitsandbytes import optim
from torch import nn

from launcher.optimizer._torch.base_optimizer import Copyable

if TYPE_CHECKING:
    import torch


class _Mixed(Copyable):
    """Decides which parameters keep 32-bit moments."""

    # The library's own way, GlobalOptimManager, is a process-wide registry.
    kept: Collection[nn.Parameter] = ()

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config(gindex, pindex, group)  # type: ignore[misc]
        if group["params"][pindex] in self.kept:
            config["optim_bits"] = 32
        return config


def mixed(
    name: str,
    groups: list[dict[str, Any]],
    kept: Collection[nn.Parameter],
    values: dict[str, Any],
) -> torch.optim.Optimizer:
    """Build the library's optimizer `name`; moments of `kept` parameters have 32 bits."""
    kind = type(f"Mixed{name}", (_Mixed, getattr(optim, name)), {})
    optimizer: Any = kind(groups, **values, min_8bit_size=0)
    optimizer.kept = kept
    built: torch.optim.Optimizer = optimizer
    return built
