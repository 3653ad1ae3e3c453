"""GaLore, with the arithmetic of its authors' package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget, UsualLr
from launcher.optimizer._groups.fields import RMS_LR, Matrices, Moments

if TYPE_CHECKING:
    import torch


class GaLore(Moments, Matrices):
    """AdamW with moments of a low-rank projection of the gradients.

    Hidden matrices are projected; AdamW trains the rest.

    Source: Zhao et al. 2024, arXiv:2403.03507, algorithm 2, and its package galore-torch 1.0.
    """

    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": RMS_LR}

    kind: Literal["galore"]
    rank: int = Field(ge=1, le=2**20)
    """Dims of the low-rank space."""
    update_every: int = Field(ge=1, le=10**12)
    """Optimizer steps between new projections, each a singular value decomposition per matrix."""
    scale: float = Field(gt=0, le=1e6)
    """Factor on the projected updates."""
    side: Literal["std", "reverse_std", "left", "right"]
    """Dim of a matrix that is projected: `std` the shorter one, `reverse_std` the longer one."""

    @override
    def refuses_shards(self) -> str:
        return "it projects on the singular vectors of whole gradients"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # The authors' package (last released in 2024) and pytorch-optimizer keep the projection as
        # a Python object in the optimizer's state, which cannot be saved without pickle.
        from launcher.optimizer._groups.hidden_matrices import hidden_matrices
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._torch.low_rank import GaLoreAdamW

        return GaLoreAdamW(
            param_groups(target, self),
            hidden_matrices(target, matrices=self.matrices, not_matrices=self.not_matrices),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            rank=self.rank,
            update_every=self.update_every,
            scale=self.scale,
            side=self.side,
        )
