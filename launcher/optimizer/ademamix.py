"""AdEMAMix from pytorch-optimizer.

Of the libraries that have it, bitsandbytes (the Trainer's choice) computes in float32 on CUDA and
the CPU only, on whole tensors; pytorch-optimizer computes with torch's own operations: in the
weights' format, on every device, and on sharded parameters. `ademamix_8bit` takes bitsandbytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.optimizer._extras import require
from launcher.optimizer._implementation import Unfused
from launcher.optimizer._mixed_moments import MixedMoments

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class AdEMAMix(MixedMoments, Unfused):
    """AdamW whose update adds a slow running mean of gradients to the fast one.

    Source: Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1.
    """

    group_options: ClassVar[frozenset[str]] = MixedMoments.group_options
    elementwise: ClassVar[bool] = True

    kind: Literal["ademamix"]

    @override
    def preflight(self) -> None:
        """See that pytorch-optimizer is installed."""
        require("pytorch_optimizer", extra="ademamix", kind=self.kind)

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """AdEMAMix of pytorch-optimizer, with the decay of AdamW."""
        self.preflight()
        from launcher.optimizer._ademamix import PortableAdEMAMix
        from launcher.optimizer._param_groups import param_groups

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
            foreach=self.in_lists(groups, target.device_type),
        )
