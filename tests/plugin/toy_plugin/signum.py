"""The sign of the momentum as the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget

if TYPE_CHECKING:
    import torch


class Signum(OptimizerOption):
    """Step by the learning rate in the direction of the momentum's sign.

    Source: Bernstein et al. 2018, arXiv:1802.04434.
    """

    elementwise: ClassVar[bool] = True

    momentum: float = Field(ge=0, lt=1)
    """Share of the last momentum that is kept."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer import param_groups

        class SignumOptimizer(torch.optim.Optimizer):
            @override
            @torch.no_grad()
            def step(self, closure: Callable[[], Any] | None = None) -> Any:
                for group in self.param_groups:
                    for param in group["params"]:
                        if param.grad is None:
                            continue
                        state = self.state[param]
                        if not state:
                            state["momentum"] = torch.zeros_like(param)
                        state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                        param.mul_(1 - group["lr"] * group["weight_decay"])
                        param.add_(state["momentum"].sign(), alpha=-group["lr"])

        defaults = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return SignumOptimizer(param_groups(target, self), defaults)
