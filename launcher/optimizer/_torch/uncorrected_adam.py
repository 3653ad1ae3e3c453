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
    """One update in place: torch's at step infinity, where its corrections 1 - beta ** step are 1.

    Args:
        params: All have gradients.
        state: `exp_avg` and `exp_avg_sq` of each, with `amsgrad` also `max_exp_avg_sq`.
        lr: Learning rate.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Of the parameters before the update, times the learning rate, or, with
            `decoupled` off, a term of the gradient.
        decoupled: AdamW rather than Adam.
        amsgrad: Divide by the largest second moment so far.
        kernel_flags: torch's `fused` and `foreach`.
    """
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
    """Return the initial state of `uncorrected_adam_` for a parameter: zeros."""
    keys = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    return {key: torch.zeros_like(param) for key in keys}


class UncorrectedAdam(BaseOptimizer):
    """Moments that start at zero and stay unscaled, so that the first updates are small.

    Decoupled weight decay comes after the update and acts on the updated weights.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay, or, with `decoupled` off, a term of the gradient.
        decoupled: AdamW rather than Adam.
        amsgrad: Divide by the largest second moment so far.
        kernel_flags: torch's `fused` and `foreach`.

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
        kernel_flags: torch's `fused` and `foreach`.
    """

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
            for step, params in by_step.items():
                self._update(params, step, group)

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
            kernel_flags=self._kernel_flags,
        )
