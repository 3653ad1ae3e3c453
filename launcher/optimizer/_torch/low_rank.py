"""AdamW with moments in a low-rank space of the gradients: GaLore and APOLLO."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.optimizer._torch.base_optimizer import PerParameterOptimizer

Side = Literal["std", "reverse_std", "left", "right"]


class _LowRankAdamW(PerParameterOptimizer):
    """AdamW whose moments of some matrices are those of projected gradients."""

    kept: ClassVar[tuple[str, ...]] = ("_matrices", "_rank", "_update_every", "_scale", "_side")

    def __init__(
        self,
        params: list[dict[str, Any]],
        matrices: Collection[nn.Parameter],
        *,
        rank: int,
        update_every: int,
        scale: float,
        side: Side,
        **adam: Any,
    ) -> None:
        super().__init__(params, adam)
        self._matrices = matrices
        self._rank = rank
        self._update_every = update_every
        self._scale = scale
        self._side = side

    @override
    def _update(self, param: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        step = state.setdefault("step", 0)
        low = self._project(param, grad, state) if param in self._matrices else grad
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(low)
            state["exp_avg_sq"] = torch.zeros_like(low)
        state["step"] = step + 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_(low, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
        update = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"])
        if param in self._matrices:
            update = self._raise(update, low, grad, state)
        corrections = math.sqrt(1 - beta2 ** (step + 1)) / (1 - beta1 ** (step + 1))
        param.add_(update, alpha=-group["lr"] * corrections)
        # After the update, as in the authors' packages; torch's AdamW decays first.
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])

    def _project(self, param: nn.Parameter, grad: Tensor, state: dict[str, Any]) -> Tensor:
        # The projection is a tensor in the state, so that it is saved and loaded like any other.
        # Moments stay when it is renewed, as in the authors' packages.
        if state["step"] % self._update_every == 0:
            state["projection"] = self._renewed(param, grad, state["step"])
        basis: Tensor = state["projection"]
        return grad.matmul(basis.T) if self._on_right(grad) else basis.T.matmul(grad)

    def _on_right(self, matrix: Tensor) -> bool:
        # `std` projects the shorter side, as GaLore does: the projection itself is then smallest.
        if self._side in {"left", "right"}:
            return self._side == "right"
        return (matrix.shape[0] >= matrix.shape[1]) == (self._side == "std")

    def _leading(self, grad: Tensor) -> Tensor:
        # In float32: torch has no decomposition of 16-bit matrices.
        left, _, right = torch.linalg.svd(grad.float(), full_matrices=False)
        basis: Tensor = right[: self._rank] if self._on_right(grad) else left[:, : self._rank]
        return basis.to(grad.dtype).contiguous()

    @abstractmethod
    def _renewed(self, param: nn.Parameter, grad: Tensor, step: int) -> Tensor:
        """Return a new projection: (rank, columns) on the right, (rows, rank) on the left."""

    @abstractmethod
    def _raise(self, update: Tensor, low: Tensor, grad: Tensor, state: dict[str, Any]) -> Tensor:
        """Return the full update for `update` and the gradient `low` of the low-rank space."""


class GaLoreAdamW(_LowRankAdamW):
    """The low-rank update, projected back."""

    @override
    def _renewed(self, param: nn.Parameter, grad: Tensor, step: int) -> Tensor:
        return self._leading(grad)

    @override
    def _raise(self, update: Tensor, low: Tensor, grad: Tensor, state: dict[str, Any]) -> Tensor:
        basis: Tensor = state["projection"]
        full = update @ basis if self._on_right(grad) else basis @ update
        return full * self._scale


class APOLLOAdamW(_LowRankAdamW):
    """The gradient itself, scaled as Adam scales its low-rank projection.

    `names` of the matrices seed random projections.
    """

    kept = (*_LowRankAdamW.kept, "_names", "_scaling", "_random", "_growth_limit")

    def __init__(
        self,
        params: list[dict[str, Any]],
        matrices: Collection[nn.Parameter],
        *,
        names: Mapping[nn.Parameter, str],
        scaling: Literal["channel", "tensor"],
        random: bool,
        growth_limit: float | None,
        **rest: Any,
    ) -> None:
        super().__init__(params, matrices, **rest)
        self._names = names
        self._scaling = scaling
        self._random = random
        self._growth_limit = growth_limit

    @override
    def _renewed(self, param: nn.Parameter, grad: Tensor, step: int) -> Tensor:
        if not self._random:
            return self._leading(grad)
        rows, columns = grad.shape
        shape = (self._rank, columns) if self._on_right(grad) else (rows, self._rank)
        # Drawn on the CPU: the same projection on every device, rank and resume.
        digest = hashlib.blake2b(f"{self._names[param]}@{step}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest))
        drawn = torch.randn(shape, generator=generator) / math.sqrt(self._rank)
        return drawn.to(grad)

    @override
    def _raise(self, update: Tensor, low: Tensor, grad: Tensor, state: dict[str, Any]) -> Tensor:
        dim = None if self._scaling == "tensor" else int(self._on_right(grad))
        before = torch.linalg.vector_norm(low, dim=dim, keepdim=True)
        after = torch.linalg.vector_norm(update, dim=dim, keepdim=True)
        # The authors' epsilon: a channel without gradient must not divide by zero.
        factor = after / (before + 1e-8)
        scaled: Tensor = grad * factor
        # Norm-growth limiter: Chen et al. 2024, arXiv:2410.01623, eq. 10.
        if self._growth_limit is not None:
            norm = torch.linalg.vector_norm(scaled)
            if "norm" in state:
                ratio = norm / (state["norm"] + 1e-8)
                excess = (ratio / self._growth_limit).clamp_(min=1)
                scaled.div_(excess)
                norm = norm / excess
            state["norm"] = norm
        return scaled.mul_(math.sqrt(self._scale))
