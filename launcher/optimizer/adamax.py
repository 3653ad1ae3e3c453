"""Adamax from torch.optim: the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.optimizer._fields import Beta
from launcher.optimizer._implementation import Unfused

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class Adamax(Unfused):
    """Adam that divides by the largest gradient of late rather than their root mean square.

    Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 2.
    """

    group_options: ClassVar[frozenset[str]] = Unfused.group_options | {"betas", "eps"}
    elementwise: ClassVar[bool] = True

    kind: Literal["adamax"]
    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their largest magnitude."""
    eps: float = Field(ge=0)
    """Added to the gradient's magnitude."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Torch's Adamax."""
        import torch

        from launcher.optimizer._param_groups import param_groups

        groups = param_groups(target, self)
        return torch.optim.Adamax(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            foreach=self.in_lists(groups, target.device_type),
        )
