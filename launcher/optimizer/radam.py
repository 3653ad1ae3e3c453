"""RAdam from torch.optim: the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.optimizer._groups.fields import DecoupledDecay, Moments
from launcher.optimizer._torch.implementation import ForeachOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class RAdam(Moments, DecoupledDecay, ForeachOption):
    """Adam with rectified variance of the first steps: it needs no warm-up.

    Its first five steps are momentum steps proportional to the gradient: use gradient clipping.

    Source: Liu et al. 2019, arXiv:1908.03265, algorithm 2.
    """

    elementwise: ClassVar[bool] = True

    kind: Literal["radam"]

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.param_groups import param_groups

        groups = param_groups(target, self)
        return torch.optim.RAdam(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.decouple,
            foreach=self.use_foreach(groups, target.device_type),
        )
