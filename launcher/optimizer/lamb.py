"""LAMB, ours: few lines on the seam that Adafactor needs anyway, so that shards can complete it.

timm's equals it but brings a library of image models; bitsandbytes' leaves the decay out of the
trust ratio and never scales an update up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget
from launcher.optimizer._groups.fields import Moments

if TYPE_CHECKING:
    import torch


class Lamb(Moments):
    """Adam whose updates are scaled to the norm of what they update.

    Source: You et al. 2019, arXiv:1904.00962, algorithm 2; options as in timm's `Lamb`, without its
        own clipping: the run's max_grad_norm does that.
    """

    group_options: ClassVar[frozenset[str]] = Moments.group_options | {"always_adapt"}

    kind: Literal["lamb"]
    eps: float = Field(gt=0, le=1)
    bias_correction: bool
    """Undo the pull of the moments' zero start."""
    grad_averaging: bool
    """Weigh a new gradient with 1 - beta1 in the running mean; off, with 1."""
    trust_clip: bool
    """Never scale an update up."""
    always_adapt: bool
    """Scale the updates of groups without weight decay too."""

    @override
    def refuses_shards(self) -> None:
        return None  # What it needs of whole tensors is summed over the shards.

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Our LAMB."""
        from launcher.optimizer._blockwise.lamb import LambOptimizer
        from launcher.optimizer._groups.param_groups import param_groups

        return LambOptimizer(
            param_groups(target, self),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            bias_correction=self.bias_correction,
            grad_averaging=self.grad_averaging,
            trust_clip=self.trust_clip,
            always_adapt=self.always_adapt,
            sharding=target.sharding,
        )
