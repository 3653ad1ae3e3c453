"""Adam without bias correction, as BERT was trained; torch has no such switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override


class UncorrectedAdamW(torch.optim.Optimizer):
    """Moments that start at zero and stay unscaled, so that the first updates are small.

    Weight decay comes after the update and acts on the updated weights, scaled by the learning
    rate.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay, or, with `decoupled` off, a term of the gradient.
        decoupled: AdamW rather than Adam.

    Source: Devlin et al. 2018 (BERT), `AdamWeightDecayOptimizer`; the order of operations is that
        of transformers 4.37's `AdamW(correct_bias=False)`.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._decoupled = decoupled

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            # Lists of one device and format go through one call each.
            by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for param in params:
                by_kind.setdefault((param.device, param.dtype), []).append(param)
            for alike in by_kind.values():
                self._update(alike, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        lr, weight_decay = group["lr"], group["weight_decay"]
        grads = [param.grad for param in params if param.grad is not None]
        for param in params:
            state = self.state[param]
            if not state:
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
        means = [self.state[param]["exp_avg"] for param in params]
        squares = [self.state[param]["exp_avg_sq"] for param in params]
        if weight_decay and not self._decoupled:
            grads = [g.add(p, alpha=weight_decay) for g, p in zip(grads, params, strict=True)]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        roots = [square.sqrt() for square in squares]
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, means, roots, value=-lr)
        if weight_decay and self._decoupled:
            torch._foreach_mul_(params, 1 - lr * weight_decay)
