"""Adam with weight decay in TensorFlow's order of operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from launcher.optimizer._uncorrected_adam import moments, uncorrected_adam_


class TensorFlowAdamW(torch.optim.Optimizer):
    """Clips, decays, then takes Adam's step with epsilon outside the bias correction.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the uncorrected root of the second moment.
        weight_decay: Decoupled decay.
        amsgrad: Divide by the largest second moment so far.
        clip_value: Limit of each gradient element; comes first.
        clip_norm: Limit of each gradient's 2-norm.
        global_clip_norm: Limit of the 2-norm over all gradients.
        walk: torch's `fused` and `foreach`.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        amsgrad: bool,
        clip_value: float | None,
        clip_norm: float | None,
        global_clip_norm: float | None,
        walk: Mapping[str, bool],
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._amsgrad = amsgrad
        self._clip_value = clip_value
        self._clip_norm = clip_norm
        self._global_clip_norm = global_clip_norm
        self._walk = walk

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        self._clip()
        for group in self.param_groups:
            by_step: dict[int, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    by_step.setdefault(self._advance(param), []).append(param)
            for step, params in by_step.items():
                self._update(params, step, group)
        return loss

    def _advance(self, param: Tensor) -> int:
        """Count an update of a parameter, from 1."""
        state = self.state[param]
        if not state:
            state |= {"step": 0, **moments(param, amsgrad=self._amsgrad)}
        state["step"] += 1
        return int(state["step"])

    def _clip(self) -> None:
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params if param.grad is not None]
        if self._clip_value is not None:
            for grad in grads:
                grad.clamp_(-self._clip_value, self._clip_value)
        if self._clip_norm is not None:
            for grad in grads:
                grad.mul_(self._clip_norm / grad.norm().clamp_(min=self._clip_norm))
        if self._global_clip_norm is not None and grads:
            norm = torch.nn.utils.get_total_norm(grads).clamp(min=self._global_clip_norm)
            for grad in grads:
                grad.mul_((self._global_clip_norm / norm).to(grad.device))

    def _update(self, params: list[Tensor], step: int, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        uncorrected_adam_(
            params,
            self.state,
            lr=group["lr"] * correction,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"] / correction,
            decoupled=True,
            amsgrad=self._amsgrad,
            walk=self._walk,
        )
