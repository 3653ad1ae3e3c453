"""Adam whose second moment is shared within blocks of a parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import OptimizerTarget
from launcher.errors import ConfigError, Problem
from launcher.optimizer._groups.param_groups import parameters
from launcher.optimizer._torch.base_optimizer import PerParameterOptimizer


def block_rows(
    target: OptimizerTarget, *, query_key: Sequence[str], head_dim: int | None
) -> dict[nn.Parameter, int]:
    """Return rows per block of each parameter; 0 for one block per element, -1 for one block.

    Raises:
        ConfigError: The size of heads is unknown, or no divisor of the rows of a matrix.
    """
    # The paper's principle: one second moment for each dense sub-block of the Hessian, which for
    # queries and keys is a head.
    rows: dict[nn.Parameter, int] = {}
    for parameter in parameters(target):
        last = parameter.names[0].rpartition(".")[2]
        if last == "bias" or last.endswith("_bias"):
            rows[parameter.param] = 0
        elif len(parameter.shape) < 2:
            rows[parameter.param] = -1
        elif any(parameter.matched_by(pattern) for pattern in query_key):
            rows[parameter.param] = _head_rows(
                target.module, parameter.names[0], parameter.shape[0], head_dim
            )
        else:
            rows[parameter.param] = 1
    return rows


def _head_rows(module: nn.Module, name: str, rows: int, head_dim: int | None) -> int:
    config: Any = getattr(module, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    found = head_dim or getattr(config, "head_dim", None)
    if found is None and heads:
        found = config.hidden_size // heads
    if not found or rows % found:
        size = (
            f"{found}-row heads do not fit" if found else "the model's config has no head size for"
        )
        message = f"{size} {name} of {rows} rows; set it"
        raise ConfigError([Problem("optimizer.head_dim", message)])
    return int(found)


class BlockwiseAdamW(PerParameterOptimizer):
    """AdamW with one second moment per block of `rows` rows (see `block_rows`)."""

    kept = ("_rows",)

    def __init__(
        self,
        params: list[dict[str, Any]],
        rows: Mapping[nn.Parameter, int],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._rows = rows

    @override
    def _update(self, param: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        lr, weight_decay = group["lr"], group["weight_decay"]
        squares = _block_means(grad, self._rows[param])
        state = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(squares)
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).add_(squares, alpha=1 - beta2)
        if weight_decay:
            param.mul_(1 - lr * weight_decay)
        root = (square.sqrt() / math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        scale = root.reciprocal_().div_(1 - beta1 ** state["step"])
        # Blocks are runs of the flattened parameter, so one view broadcasts each block's scale.
        update = mean.reshape(scale.numel(), -1) * scale.reshape(-1, 1)
        param.add_(update.view_as(param), alpha=-lr)


def _block_means(grad: Tensor, rows: int) -> Tensor:
    squares = grad.square()
    if rows == 0:
        return squares
    if rows == -1:
        return squares.mean().reshape(1)
    return squares.reshape(grad.shape[0] // rows, -1).mean(dim=1)
