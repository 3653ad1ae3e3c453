"""SGD from torch.optim: the reference, with a fused kernel for each device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import UsualLr
from launcher.optimizer._groups.fields import SGD_LR, LearningRate
from launcher.optimizer._torch.implementation import FusedOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class SGD(LearningRate, FusedOption):
    """Stochastic gradient descent, with momentum.

    Source: Sutskever et al. 2013 for momentum and Nesterov's form, as torch.optim.SGD computes
        them.
    """

    group_options: ClassVar[frozenset[str]] = LearningRate.group_options | {
        "momentum",
        "dampening",
        "nesterov",
    }

    # torch has no sharding rule for the fused kernel of SGD.
    fuses_sharded: ClassVar[bool] = False
    # The kernel skips whole vectors of 16-bit elements: https://github.com/pytorch/pytorch/issues/191763
    fuses_16_bit: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": SGD_LR}

    kind: Literal["sgd"]
    momentum: float = Field(ge=0, lt=1)
    """Momentum of the updates; 0 for none."""
    dampening: float = Field(ge=0, le=1)
    """Share of the gradient that does not enter the momentum."""
    nesterov: bool
    """Look ahead along the momentum."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov: needs momentum above 0 and dampening 0; set it to false")
        return self

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._torch.base_optimizer import FusedSGD

        groups = param_groups(target, self)
        flags = self.kernel_flags(groups, target.device_type)
        return (FusedSGD if flags["fused"] else torch.optim.SGD)(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            dampening=self.dampening,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            **flags,
        )
