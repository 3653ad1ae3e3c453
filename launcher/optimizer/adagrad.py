"""Adagrad from torch.optim: the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import UsualLr
from launcher.optimizer._groups.fields import RMS_LR, Epsilon, LearningRate
from launcher.optimizer._torch.implementation import FusedOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class Adagrad(LearningRate, FusedOption):
    """Gradients divided by the root of the sum of all squared gradients.

    Source: Duchi et al. 2011, JMLR 12, figure 1, diagonal form.
    """

    group_options: ClassVar[frozenset[str]] = LearningRate.group_options | {"eps", "lr_decay"}

    fused_on: ClassVar[frozenset[str]] = frozenset({"cpu"})
    fuses_sharded: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": RMS_LR}

    kind: Literal["adagrad"]
    lr_decay: float = Field(ge=0, le=1e6)
    """The learning rate is divided by 1 + lr_decay times the steps done."""
    initial_accumulator_value: float = Field(ge=0, le=1e6)
    """Initial value of the sum of squared gradients."""
    eps: Epsilon
    """Added to the root of the sum."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.param_groups import param_groups

        groups = param_groups(target, self)
        return torch.optim.Adagrad(
            groups,
            lr=self.lr,
            lr_decay=self.lr_decay,
            weight_decay=self.weight_decay,
            initial_accumulator_value=self.initial_accumulator_value,
            eps=self.eps,
            **self.kernel_flags(groups, target.device_type),
        )
