"""Builds torch-optimi's Lion, which names its options in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimi import Lion

from launcher.optimizer._param_groups import param_groups

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget
    from launcher.optimizer.lion import Lion as LionOption


def lion(target: OptimizerTarget, option: LionOption) -> torch.optim.Optimizer:
    """Optimi's Lion over the module's groups; weight decay is scaled by lr as in AdamW."""
    groups = param_groups(target, option)
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
