"""Schedule-free RAdam from schedulefree, the package of the method's authors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from typing_extensions import override

from launcher.optimizer._groups.fields import Moments, OpenUnit
from launcher.optimizer._libraries.options import ScheduleFree

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class ScheduleFreeRAdam(ScheduleFree, Moments):
    """RAdam with averaged weights, which replace a decaying schedule; it needs no warm-up.

    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1, with the rectification of Liu et al.
        2019, arXiv:1908.03265, instead of a warm-up.
    """

    kind: Literal["schedule_free_radam"]
    betas: tuple[OpenUnit, Annotated[float, Field(gt=0.6, lt=1)]]
    """Interpolation between averaged and fast weights, and decay of the mean of squares, which at
    0.6 and below would never be trusted."""
    silent_sgd_phase: bool
    """Leave the weights alone in the first four steps, whose mean of squares says too little; else
    those are steps of SGD."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.schedulefree import PortableScheduleFreeRAdam

        return PortableScheduleFreeRAdam(
            param_groups(target, self),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            r=self.r,
            weight_lr_power=self.weight_lr_power,
            silent_sgd_phase=self.silent_sgd_phase,
        )
