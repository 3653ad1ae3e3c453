"""Adan from torch-optimi.

Its authors' package compiles kernels when it is installed; torch-optimi's has Triton's, keeps
bfloat16 and float16 weights exact by Kahan summation, and takes its steps in torch elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.optimizer._extras import require
from launcher.optimizer._fields import Beta

if TYPE_CHECKING:
    import torch


class Adan(OptimizerOption):
    """Adam that also follows how gradients change: Nesterov's momentum without a second gradient.

    Source: Xie et al. 2022, arXiv:2208.06677, algorithm 1, with Adam's correction of the zero start
        of its three means, as in the authors' code.
    """

    group_options: ClassVar[frozenset[str]] = OptimizerOption.group_options | {"betas", "eps"}
    elementwise: ClassVar[bool] = True

    kind: Literal["adan"]
    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[Beta, Beta, Beta]
    """Decay of the running means of gradients, of their changes, and of their squares; the paper
    calls 1 minus these its betas."""
    eps: float = Field(ge=0)
    """Added to the root of the second moment."""
    kahan_sum: bool | None
    """Keep what rounding takes from the weights; null does so for 16-bit weights."""

    @override
    def preflight(self) -> None:
        """See that torch-optimi is installed."""
        require("optimi", extra="adan", kind=self.kind)

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Optimi's Adan; weight decay is scaled by lr and, as in the paper, implicit."""
        self.preflight()
        from launcher.optimizer._adan import PortableAdan
        from launcher.optimizer._param_groups import param_groups

        return PortableAdan(
            param_groups(target, self),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            kahan_sum=self.kahan_sum,
        )
