"""RAdam from torch.optim: the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.optimizer._fields import Beta
from launcher.optimizer._implementation import Unfused

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class RAdam(Unfused):
    """Adam that trusts its second moment as far as it has seen gradients: it needs no warm-up.

    Its first five steps are steps of momentum, which are of the gradient's size: clip it.

    Source: Liu et al. 2019, arXiv:1908.03265, algorithm 2.
    """

    group_options: ClassVar[frozenset[str]] = Unfused.group_options | {"betas", "eps"}
    elementwise: ClassVar[bool] = True

    kind: Literal["radam"]
    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their squares."""
    eps: float = Field(ge=0)
    """Added to the root of the second moment."""
    decouple: bool
    """Decay the weights themselves, as AdamW, rather than add to the gradient."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Torch's RAdam."""
        import torch

        from launcher.optimizer._param_groups import param_groups

        groups = param_groups(target, self)
        return torch.optim.RAdam(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.decouple,
            foreach=self.in_lists(groups, target.device_type),
        )
