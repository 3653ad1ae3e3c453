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
    """Adan whose groups have a step count from the start."""

    group_state = ("step",)

    def __init__(self, params: list[dict[str, Any]], **options: Any) -> None:
        groups = [dict(group) for group in params]
        for group in groups:
            # The library adds it in the first step: a checkpoint before that would lack it.
            group["step"] = torch.tensor(0, dtype=torch.int32)
            if "betas" in group:
                group["beta1"], group["beta2"], group["beta3"] = group.pop("betas")
        super().__init__(groups, **options)


def lion(target: OptimizerTarget, option: LionOption) -> torch.optim.Optimizer:
    """Build Lion; its weight decay is scaled by the learning rate as in AdamW."""
    groups = param_groups(target, option)
    for group in groups:
        # The library's groups have one option for each beta.
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
