"""Adam without bias correction, in torch's own kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from typing_extensions import override


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
    walk: Mapping[str, bool],
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
        walk: torch's `fused` and `foreach`.
    """
    where = {param.device if walk["fused"] else torch.device("cpu") for param in params}
    infinity = {device: torch.full((), math.inf, device=device) for device in where}
    adam(
        list(params),
        [param.grad for param in params if param.grad is not None],
        [state[param]["exp_avg"] for param in params],
        [state[param]["exp_avg_sq"] for param in params],
        [state[param]["max_exp_avg_sq"] for param in params] if amsgrad else [],
        [infinity[param.device if walk["fused"] else torch.device("cpu")] for param in params],
        amsgrad=amsgrad,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
        decoupled_weight_decay=decoupled,
        foreach=walk["foreach"],
        fused=walk["fused"],
    )


def moments(param: Tensor, *, amsgrad: bool) -> dict[str, Tensor]:
    """What `uncorrected_adam_` keeps of a parameter, at zero."""
    keys = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    return {key: torch.zeros_like(param) for key in keys}


class UncorrectedAdam(torch.optim.Optimizer):
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
        walk: torch's `fused` and `foreach`.

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
        amsgrad: bool,
        walk: Mapping[str, bool],
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._decoupled = decoupled
        self._amsgrad = amsgrad
        self._walk = walk

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
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
                walk=self._walk,
            )
        return loss
