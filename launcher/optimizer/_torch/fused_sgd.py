"""Momentum for parameters that torch's fused SGD meets later than others."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def give_late_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step, a buffer for each parameter whose first gradient comes after the others'.

    The kernel takes no parameter without a buffer beside one with it. What it makes of this one is
    what a first step makes: the gradient, decay included.
    """
    for group in optimizer.param_groups:
        params = [param for param in group["params"] if param.grad is not None]
        late = [p for p in params if "momentum_buffer" not in optimizer.state.get(p, ())]
        if group["momentum"] == 0 or len(late) == len(params):
            continue
        for param in late:
            first = param.grad.add(param, alpha=group["weight_decay"])
            # For it to be momentum * buffer + (1 - dampening) * first.
            buffer = first.mul_(group["dampening"] / group["momentum"])
            optimizer.state[param]["momentum_buffer"] = buffer
