"""Adam without bias correction, as BERT was trained, in torch's own kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override


class UncorrectedAdam(torch.optim.Adam):
    """Torch's Adam at step infinity, where its corrections 1 - beta ** step are 1.

    So the moments, which start at zero, stay unscaled, and the first updates are small. Decoupled
    weight decay comes after the update and acts on the updated weights.

    Built like torch's, with neither `capturable` nor a learning rate that is a tensor.

    Source: Devlin et al. 2018 (BERT), `AdamWeightDecayOptimizer`; the order of operations is that
        of transformers 4.37's `AdamW(correct_bias=False)`.
    """

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        given = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
        for group, (lr, decay) in zip(self.param_groups, given, strict=True):
            self._start(group)
            if group["decoupled_weight_decay"]:
                # Torch decays first: p (1 - lr decay) - lr u. What comes out of decaying last,
                # (p - lr u) (1 - lr decay), is the same with this rate, and the decay over it.
                rest = 1 - lr * decay or math.ulp(1.0)
                group["lr"], group["weight_decay"] = lr * rest, decay / rest
        try:
            super().step()
        finally:
            for group, (lr, decay) in zip(self.param_groups, given, strict=True):
                group["lr"], group["weight_decay"] = lr, decay
        return loss

    def _start(self, group: dict[str, Any]) -> None:
        """State of parameters with a first gradient, as torch's, but for the step."""
        for param in group["params"]:
            if param.grad is None or self.state[param]:
                continue
            device = param.device if group["fused"] else "cpu"
            step = torch.full((), torch.inf, dtype=torch.float32, device=device)
            moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
            zeros = {key: torch.zeros_like(param) for key in moments}
            self.state[param] = {"step": step, **zeros}
