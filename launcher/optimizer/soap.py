"""SOAP from pytorch-optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget, UsualLr
from launcher.optimizer._groups.fields import RMS_LR, Moments
from launcher.optimizer._libraries.options import LibraryOption

if TYPE_CHECKING:
    import torch


class SOAP(Moments, LibraryOption):
    """Adam in the slowly turning eigenbasis of Shampoo's preconditioner.

    Its first step only measures: it changes no weight.

    Source: Vyas et al. 2024, arXiv:2409.11321, algorithm 3.
    """

    package: ClassVar[tuple[str, str]] = ("pytorch_optimizer", "pytorch-optimizer")
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": RMS_LR}

    kind: Literal["soap"]
    shampoo_beta: float | None = Field(ge=0, lt=1)
    """Decay of the preconditioner; null for the second beta."""
    precondition_frequency: int = Field(ge=1, le=10**12)
    """Optimizer steps between updates of the eigenbasis."""
    max_precondition_dim: int = Field(ge=1, le=2**20)
    """Longer dims are not preconditioned: the basis of a dim of n elements has n × n."""
    merge_dims: bool
    """Merge small dims before preconditioning."""
    precondition_1d: bool
    """Precondition vectors too."""
    correct_bias: bool
    """Adam's bias correction."""
    normalize_gradient: bool
    """Scale each update to a root mean square of 1."""

    @override
    def refuses_shards(self) -> str:
        return "it works in eigenbases of whole matrices"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # The authors' code is a single file without releases; pytorch-optimizer is tested, typed
        # and released monthly.
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.pytorch_optimizer import PortableSOAP

        return PortableSOAP(
            param_groups(target, self),
            lr=self.lr,
            betas=self.betas,
            shampoo_beta=self.shampoo_beta,
            weight_decay=self.weight_decay,
            precondition_frequency=self.precondition_frequency,
            max_precondition_dim=self.max_precondition_dim,
            merge_dims=self.merge_dims,
            precondition_1d=self.precondition_1d,
            correct_bias=self.correct_bias,
            normalize_gradient=self.normalize_gradient,
            eps=self.eps,
        )
