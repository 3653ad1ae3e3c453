"""Adan from torch-optimi."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import OptimizerTarget
from launcher.optimizer._groups.fields import Beta, KahanSum, SecondMoment
from launcher.optimizer._libraries.options import LibraryOption

if TYPE_CHECKING:
    import torch


class Adan(SecondMoment, KahanSum, LibraryOption):
    """Adam with Nesterov momentum, computed from the differences of successive gradients.

    Source: Xie et al. 2022, arXiv:2208.06677, algorithm 1, with bias correction as in its code.
    """

    elementwise: ClassVar[bool] = True

    package: ClassVar[tuple[str, str]] = ("optimi", "torch-optimi")

    kind: Literal["adan"]
    betas: tuple[Beta, Beta, Beta]
    """Decay of the running means of gradients, of their changes, and of their squares; the paper
    calls 1 minus these its betas."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # Not the authors' package, which compiles kernels when it is installed. torch-optimi also
        # compensates the rounding of bfloat16 and float16 weights.
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.optimi import PortableAdan

        return PortableAdan(
            param_groups(target, self),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            kahan_sum=self.kahan_sum,
        )
