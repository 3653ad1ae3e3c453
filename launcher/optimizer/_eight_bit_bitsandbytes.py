"""8-bit Adam from bitsandbytes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from torch import nn

if TYPE_CHECKING:
    import torch

    from launcher.optimizer._eight_bit import EightBitAdam


class _Mixed:
    """Decides which parameters keep 32 bits; the library's own way is a process-wide registry."""

    kept: Collection[nn.Parameter] = ()

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """The library's options of one parameter."""
        config: dict[str, Any] = super().get_config(gindex, pindex, group)  # type: ignore[misc]
        if group["params"][pindex] in self.kept:
            config["optim_bits"] = 32
        return config


class _MixedAdamW8bit(_Mixed, AdamW8bit):
    """AdamW8bit of bitsandbytes."""


class _MixedPagedAdamW8bit(_Mixed, PagedAdamW8bit):
    """PagedAdamW8bit of bitsandbytes."""


def bitsandbytes_adam(
    groups: list[dict[str, Any]], option: EightBitAdam, kept: Collection[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer over some groups; state: `step` (int), `state1`, `state2` and their scales.

    Args:
        groups: Parameter groups.
        option: What is configured. Without weight decay Adam is AdamW.
        kept: Parameters with 32-bit moments.
    """
    kind = _MixedPagedAdamW8bit if option.paged else _MixedAdamW8bit
    optimizer: _MixedAdamW8bit | _MixedPagedAdamW8bit = kind(
        groups,
        lr=option.lr,
        betas=option.betas,
        eps=option.eps,
        weight_decay=option.weight_decay,
        min_8bit_size=0,
    )
    optimizer.kept = kept
    return optimizer
