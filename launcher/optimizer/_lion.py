"""Builds torch-optimi's Lion, which names its options in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimi import Lion

from launcher.optimizer._param_groups import param_groups

if TYPE_CHECKING:
    import torch
    from torch import nn

    from launcher.optimizer.lion import Lion as LionOption


def lion(module: nn.Module, option: LionOption) -> torch.optim.Optimizer:
    """Optimi's Lion over a module's groups; weight decay is scaled by lr as in AdamW."""
    groups = param_groups(module, option)
    for group in groups:
        if "betas" in group:
            group["beta1"], group["beta2"] = group.pop("betas")
    optimizer: torch.optim.Optimizer = Lion(
        groups,
        lr=option.lr,
        betas=option.betas,
        weight_decay=option.weight_decay,
        kahan_sum=option.kahan_sum,
    )
    return optimizer
