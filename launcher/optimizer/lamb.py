"""LAMB, on the base class of Adafactor, which supports shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget
from launcher.optimizer._groups.fields import Moments

if TYPE_CHECKING:
    import torch


class Lamb(Moments):
    """Adam with each parameter's update scaled to the norm of its weights.

    Source: You et al. 2019, arXiv:1904.00962, algorithm 2; options as in timm's `Lamb`, without its
        own clipping: the run's max_grad_norm does that.
    """

    group_options: ClassVar[frozenset[str]] = Moments.group_options | {"always_adapt"}

    kind: Literal["lamb"]
    eps: float = Field(gt=0, le=1)
    bias_correction: bool
    """Correct the moments for their initial zeros."""
    grad_averaging: bool
    """Weight of a new gradient in the running mean: 1 - beta1 if true, else 1."""
    trust_clip: bool
    """Never scale an update up."""
    always_adapt: bool
    """Scale the updates of groups without weight decay too."""

    @override
    def refuses_shards(self) -> None:
        return None  # sums over whole tensors are summed over the shards

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # timm's equals it, but brings a library of image models; bitsandbytes' leaves the decay out
        # of the trust ratio and never scales an update up.
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
