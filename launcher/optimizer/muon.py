"""Muon from torch.optim, with torch's AdamW for what is no hidden matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget, UsualLr
from launcher.optimizer._groups.fields import ADAM_LR, Beta, Epsilon, LearningRate, Matrices

if TYPE_CHECKING:
    import torch


class Muon(LearningRate, Matrices):
    """Orthogonalised momentum for hidden matrices, AdamW for the rest.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; `match_rms_adamw` is Liu
        et al. 2025, arXiv:2502.16982, eq. 4.
    """

    group_options: ClassVar[frozenset[str]] = LearningRate.group_options | {
        "momentum",
        "nesterov",
        "betas",
    }
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {
        "lr": UsualLr(full=(1e-4, 2e-3), adapter=(1e-3, 1e-2)),
        "adamw_lr": ADAM_LR,
    }

    kind: Literal["muon"]
    lr: float = Field(gt=0, le=1e3)
    """Peak learning rate of the hidden matrices; the schedule scales it."""
    momentum: Beta
    """Decay of the running mean of gradients."""
    nesterov: bool
    """Use Nesterov momentum."""
    ns_steps: int = Field(ge=1, lt=100)
    """Newton-Schulz iterations that orthogonalise the momentum."""
    adjust_lr: Literal["original", "match_rms_adamw"]
    """Scaling of the learning rate by a matrix's shape: `original` by sqrt(max(1, rows / columns)),
    `match_rms_adamw` by 0.2 sqrt(max(rows, columns)), after which rates tuned for AdamW fit."""
    adamw_lr: float = Field(gt=0, le=1e3)
    """Peak learning rate of the rest; the schedule scales it by the same factor."""
    betas: tuple[Beta, Beta]
    """AdamW's decay of the running mean of gradients and of their squares."""
    eps: Epsilon
    """Added to the root of AdamW's second moment."""

    @override
    def refuses_shards(self) -> None:
        return None  # each matrix is gathered to one rank

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.hidden_matrices import (
            check_overrides,
            hidden_matrices,
            split,
        )
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._torch.implementation import choose
        from launcher.optimizer._torch.muon import Pair, ShardedMuon

        hidden = hidden_matrices(target, matrices=self.matrices, not_matrices=self.not_matrices)
        matrices = split(param_groups(target, self), hidden.__contains__, "muon")
        others = split(
            param_groups(target, self.model_copy(update={"lr": self.adamw_lr})),
            lambda param: param not in hidden,
            "adamw",
        )
        check_overrides(target, self, hidden, of_hidden={"momentum", "nesterov"}, of_rest={"betas"})
        for group in others:
            # The engine multiplies one schedule, that of the hidden matrices' peak.
            group["lr_scale"] = group["lr"] / self.lr
        # Freezing may leave one of the two without parameters, which torch refuses.
        built: list[torch.optim.Optimizer] = []
        if matrices:
            options: dict[str, Any] = {
                "lr": self.lr,
                "weight_decay": self.weight_decay,
                "momentum": self.momentum,
                "nesterov": self.nesterov,
                "ns_steps": self.ns_steps,
                "adjust_lr_fn": self.adjust_lr,
            }
            built.append(
                ShardedMuon(matrices, sharding=target.sharding, **options)
                if target.is_sharded
                else torch.optim.Muon(matrices, **options)
            )
        if others:
            adamw = torch.optim.AdamW(
                others,
                lr=self.adamw_lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                **choose("auto", others, target.device_type, kind="muon's AdamW"),
            )
            built.append(adamw)
        return Pair(*built) if len(built) > 1 else built[0]
