"""torch's fused SGD with parameters whose first gradient comes later than that of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override


class FusedSGD(torch.optim.SGD):
    """Gives such parameters a momentum buffer: the kernel takes all with one, or none.

    A subclass, because copies of an optimizer lose their hooks.
    """

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._give_late_momentum()
        super().step()
        return loss

    def _give_late_momentum(self) -> None:
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            late = [p for p in params if "momentum_buffer" not in self.state.get(p, ())]
            if group["momentum"] == 0 or len(late) == len(params):
                continue
            for param in late:
                first = param.grad.add(param, alpha=group["weight_decay"])
                # momentum * buffer + (1 - dampening) * first is then `first`, as in a first step.
                buffer = first.mul_(group["dampening"] / group["momentum"])
                self.state[param]["momentum_buffer"] = buffer
