"""Adamax from torch.optim: the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.optimizer._groups.fields import Beta, Epsilon, Moments
from launcher.optimizer._torch.implementation import ForeachOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class Adamax(Moments, ForeachOption):
    """Adam with the infinity norm: divides by a decaying maximum of gradients.

    Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 2.
    """

    elementwise: ClassVar[bool] = True

    kind: Literal["adamax"]
    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their maximum magnitude."""
    eps: Epsilon
    """Added to the gradient's magnitude."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.param_groups import param_groups

        groups = param_groups(target, self)
        return torch.optim.Adamax(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            foreach=self.use_foreach(groups, target.device_type),
        )
