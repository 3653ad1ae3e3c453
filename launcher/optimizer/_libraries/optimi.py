"""Adan and Lion of torch-optimi."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from optimi import Adan, Lion

from launcher.optimizer._groups.param_groups import param_groups

if TYPE_CHECKING:
    from launcher.contracts import OptimizerTarget
    from launcher.optimizer.lion import Lion as LionOption


class PortableAdan(Adan):
    """Optimi's Adan; its groups count their steps before there is one, too."""

    group_state = ("step",)
    """State of the groups between steps."""

    def __init__(self, params: list[dict[str, Any]], **options: Any) -> None:
        groups = [dict(group) for group in params]
        for group in groups:
            group["step"] = torch.tensor(0, dtype=torch.int32)
            if "betas" in group:
                group["beta1"], group["beta2"], group["beta3"] = group.pop("betas")
        super().__init__(groups, **options)


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
