"""APOLLO, with the arithmetic of its authors' package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget, UsualLr
from launcher.optimizer._groups.fields import RMS_LR, Matrices, Moments

if TYPE_CHECKING:
    import torch


class APOLLO(Moments, Matrices):
    """Gradients scaled by factors that AdamW gives for their low-rank projection.

    This applies to hidden matrices; AdamW trains the rest.

    Source: Zhu et al. 2024, arXiv:2412.05270, algorithm 1, and its package apollo-torch 1.0.3.
    """

    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": RMS_LR}

    kind: Literal["apollo"]
    rank: int = Field(ge=1, le=2**20)
    """Dims of the low-rank space."""
    update_every: int = Field(ge=1, le=10**12)
    """Optimizer steps between new projections."""
    scale: float = Field(gt=0, le=1e6)
    """The updates are multiplied by its root; about a matrix's width divided by the rank."""
    scaling: Literal["channel", "tensor"]
    """One factor per channel, or per matrix (APOLLO-Mini, with rank 1)."""
    projection: Literal["random", "svd"]
    """`random` depends on a parameter's name and the step alone; `svd` follows the gradient."""
    growth_limit: float | None = Field(gt=1, le=1e6)
    """Upper limit of the growth of an update's norm per step, as a factor; null for no limit."""
    side: Literal["std", "reverse_std", "left", "right"]
    """Dim of a matrix that is projected: `std` the shorter one, `reverse_std` the longer one."""

    @override
    def refuses_shards(self) -> str:
        return "it projects whole gradients"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # The authors' package keeps the projection as a Python object in the optimizer's state,
        # which cannot be saved without pickle; pytorch-optimizer's APOLLO scales the projected
        # gradient instead of the gradient.
        from launcher.optimizer._groups.hidden_matrices import hidden_matrices
        from launcher.optimizer._groups.param_groups import param_groups, parameters
        from launcher.optimizer._torch.low_rank import APOLLOAdamW

        hidden = hidden_matrices(target, matrices=self.matrices, not_matrices=self.not_matrices)
        return APOLLOAdamW(
            param_groups(target, self),
            hidden,
            names={p.param: p.names[0] for p in parameters(target) if p.param in hidden},
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            rank=self.rank,
            update_every=self.update_every,
            scale=self.scale,
            scaling=self.scaling,
            random=self.projection == "random",
            growth_limit=self.growth_limit,
            side=self.side,
        )
