"""NAdam from torch.optim: the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.optimizer._groups.fields import DecoupledDecay, Moments
from launcher.optimizer._torch.implementation import ForeachOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class NAdam(Moments, DecoupledDecay, ForeachOption):
    """Adam with Nesterov momentum, which increases during the run.

    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam", algorithm 2, with its schedule
        of the momentum, as torch.optim.NAdam computes it.
    """

    group_options: ClassVar[frozenset[str]] = Moments.group_options | {"momentum_decay"}
    elementwise: ClassVar[bool] = True

    kind: Literal["nadam"]
    momentum_decay: float = Field(ge=0, le=1e3)
    """Speed at which the momentum grows from half of the first beta to the first beta: at step t it
    is beta · (1 - 0.96 ** (t · momentum_decay) / 2), half-way after 4,200 steps at 0.004."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.param_groups import param_groups

        groups = param_groups(target, self)
        return torch.optim.NAdam(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            momentum_decay=self.momentum_decay,
            decoupled_weight_decay=self.decouple,
            foreach=self.use_foreach(groups, target.device_type),
        )
