"""RMSprop from torch.optim: the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import UsualLr
from launcher.optimizer._groups.fields import RMS_LR, Beta, Epsilon, LearningRate
from launcher.optimizer._torch.implementation import ForeachOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class RMSprop(LearningRate, ForeachOption):
    """Gradients divided by the root of their running mean square.

    Source: Tieleman & Hinton 2012, lecture 6.5; `centered` is Graves 2013, arXiv:1308.0850, eq.
    38-45.
    """

    group_options: ClassVar[frozenset[str]] = LearningRate.group_options | {"alpha", "eps"}
    elementwise: ClassVar[bool] = True
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": RMS_LR}

    kind: Literal["rmsprop"]
    alpha: Beta
    """Decay of the running mean of squared gradients."""
    eps: Epsilon
    """Added to the root."""
    momentum: float = Field(ge=0, lt=1)
    """Momentum of the updates; 0 for none."""
    centered: bool
    """Divide by the gradient's standard deviation rather than its root mean square."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.param_groups import param_groups

        groups = param_groups(target, self)
        return torch.optim.RMSprop(
            groups,
            lr=self.lr,
            alpha=self.alpha,
            eps=self.eps,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            centered=self.centered,
            foreach=self.use_foreach(groups, target.device_type),
        )
