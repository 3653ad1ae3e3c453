"""AdEMAMix from pytorch-optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.optimizer._groups.fields import MixedMoments
from launcher.optimizer._libraries.options import LibraryOption
from launcher.optimizer._torch.implementation import ForeachOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class AdEMAMix(MixedMoments, ForeachOption, LibraryOption):
    """AdamW whose update adds a slow running mean of gradients to the fast one.

    Source: Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1.
    """

    elementwise: ClassVar[bool] = True

    package: ClassVar[tuple[str, str]] = ("pytorch_optimizer", "pytorch-optimizer")

    kind: Literal["ademamix"]

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # Not bitsandbytes (the Trainer's choice): it computes in float32 on CUDA and the CPU only,
        # on whole tensors. pytorch-optimizer uses torch's operations: any device, and shards.
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.pytorch_optimizer import PortableAdEMAMix

        groups = param_groups(target, self)
        return PortableAdEMAMix(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            alpha=self.alpha,
            t_alpha_beta3=self.t_alpha_beta3,
            weight_decay=self.weight_decay,
            weight_decouple=True,
            foreach=self.use_foreach(groups, target.device_type),
        )
