"""Schedule-free SGD from schedulefree, the package of the method's authors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import UsualLr
from launcher.optimizer._groups.fields import SGD_LR, OpenUnit
from launcher.optimizer._libraries.options import ScheduleFree

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class ScheduleFreeSGD(ScheduleFree):
    """SGD with averaged weights, which replace a decaying schedule; needs ten times SGD's lr.

    Source: Defazio et al. 2024, arXiv:2405.15682, equations 3 to 5.
    """

    group_options: ClassVar[frozenset[str]] = ScheduleFree.group_options | {"momentum"}
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": SGD_LR}

    kind: Literal["schedule_free_sgd"]
    momentum: OpenUnit
    """Interpolation between averaged and fast weights, at which gradients are taken."""
    warmup_steps: int = Field(ge=0, le=10**12)
    """Optimizer steps of linear warm-up, by the optimizer itself."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.schedulefree import PortableScheduleFreeSGD

        return PortableScheduleFreeSGD(
            param_groups(target, self),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            r=self.r,
            weight_lr_power=self.weight_lr_power,
        )
