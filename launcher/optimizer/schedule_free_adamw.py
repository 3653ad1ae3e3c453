"""Schedule-free AdamW from schedulefree, the package of the method's authors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.optimizer._groups.fields import Beta, Moments, OpenUnit
from launcher.optimizer._libraries.options import ScheduleFree

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class ScheduleFreeAdamW(ScheduleFree, Moments):
    """AdamW with averaged weights, which replace a decaying schedule.

    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """

    kind: Literal["schedule_free_adamw"]
    betas: tuple[OpenUnit, Beta]
    """Interpolation between averaged and fast weights, and decay of the mean of squares."""
    warmup_steps: int = Field(ge=0, le=10**12)
    """Optimizer steps of linear warm-up, by the optimizer itself."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.schedulefree import PortableScheduleFreeAdamW

        return PortableScheduleFreeAdamW(
            param_groups(target, self),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            r=self.r,
            weight_lr_power=self.weight_lr_power,
        )
