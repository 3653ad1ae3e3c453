"""Adam without bias correction, in torch's own kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from typing_extensions import override

from launcher.optimizer._torch.base_optimizer import BaseOptimizer


def uncorrected_adam_(
    params: Sequence[Tensor],
    state: Mapping[Tensor, dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    amsgrad: bool,
    kernel_flags: Mapping[str, bool],
) -> None:
    """Update parameters, all with gradients, in place; weight decay comes before the update."""
    # torch always corrects the moments' bias: at step infinity its factors 1 - beta ** step are 1.
    # The fused kernel reads the step on the device of the parameter.
    where = {param.device if kernel_flags["fused"] else torch.device("cpu") for param in params}
    infinity = {device: torch.full((), math.inf, device=device) for device in where}
    adam(
        list(params),
        [param.grad for param in params if param.grad is not None],
        [state[param]["exp_avg"] for param in params],
        [state[param]["exp_avg_sq"] for param in params],
        [state[param]["max_exp_avg_sq"] for param in params] if amsgrad else [],
        [
            infinity[param.device if kernel_flags["fused"] else torch.device("cpu")]
            for param in params
        ],
        amsgrad=amsgrad,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
        decoupled_weight_decay=decoupled,
        foreach=kernel_flags["foreach"],
        fused=kernel_flags["fused"],
    )


def moments(param: Tensor, *, amsgrad: bool) -> dict[str, Tensor]:
    """Return the initial state of `uncorrected_adam_` for a parameter."""
    keys = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    return {key: torch.zeros_like(param) for key in keys}


class UncorrectedAdam(BaseOptimizer):
    """Adam without bias correction: moments start at zero, so that the first updates are small.

    Decoupled weight decay comes after the update and acts on the updated weights.

    Source: Devlin et al. 2018 (BERT), `AdamWeightDecayOptimizer`; the order of operations is that
        of transformers 4.37's `AdamW(correct_bias=False)`.
    """

    kept = ("_decoupled", "_amsgrad", "_kernel_flags")
    takes_groups = True

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
        amsgrad: bool,
        kernel_flags: Mapping[str, bool],
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._decoupled = decoupled
        self._amsgrad = amsgrad
        self._kernel_flags = kernel_flags

    @override
    def _step(self) -> None:
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                self.state[param] = self.state[param] or moments(param, amsgrad=self._amsgrad)
            lr, decay = group["lr"], group["weight_decay"]
            if self._decoupled:
                # torch decays first: p (1 - lr decay) - lr u. To decay last is
                # (p - lr u) (1 - lr decay): the same with another rate, and the decay over it.
                # At lr * decay = 1 nothing would be left to divide by.
                rest = 1 - lr * decay or math.ulp(1.0)
                lr, decay = lr * rest, decay / rest
            uncorrected_adam_(
                params,
                self.state,
                lr=lr,
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=decay,
                decoupled=self._decoupled,
                amsgrad=self._amsgrad,
                kernel_flags=self._kernel_flags,
            )


class TensorFlowAdamW(BaseOptimizer):
    """Clips, decays, then takes Adam's step with epsilon outside the bias correction."""

    kept = ("_amsgrad", "_clip_value", "_clip_norm", "_global_clip_norm", "_kernel_flags")
    takes_groups = True

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
        kernel_flags: Mapping[str, bool],
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._amsgrad = amsgrad
        self._clip_value = clip_value
        self._clip_norm = clip_norm
        self._global_clip_norm = global_clip_norm
        self._kernel_flags = kernel_flags

    @override
    def _step(self) -> None:
        self._clip()
        for group in self.param_groups:
            by_step: dict[int, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    by_step.setdefault(self._advance(param), []).append(param)
            # One call for all parameters of a step count, because the kernels take one rate.
            for step, params in by_step.items():
                self._update(params, step, group)

    def _advance(self, param: Tensor) -> int:
        state = self.state[param]
        if not state:
            state |= {"step": 0, **moments(param, amsgrad=self._amsgrad)}
        state["step"] += 1
        return int(state["step"])

    def _clip(self) -> None:
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params if param.grad is not None]
        # The order of Keras: elements, each norm, the norm of all.
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
        # Keras scales the rate by both corrections instead of the moments: epsilon is then added to
        # the uncorrected root. The decay must not be scaled with the rate.
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
            kernel_flags=self._kernel_flags,
        )
