"""8-bit Adam from torchao, whose state between steps is plain tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit
from torchao.optim.adam import Adam8bit
from torchao.optim.subclass_8bit import OptimState8bit

if TYPE_CHECKING:
    from launcher.optimizer._eight_bit import EightBitAdam

_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Name of each moment, and whether it is signed."""


class _Plain:
    """Unfolds torchao's quantised tensors between steps, and takes learning rates that are numbers.

    A moment in 8 bits is `<moment>.codes` (uint8, the parameter's shape) and `<moment>.scale`
    (float32, one per block) between steps: what can be saved and loaded as it is.
    """

    kept: Collection[nn.Parameter] = ()
    block_size: int
    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, compiled for each shape of parameter the first time."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
            for param in group["params"]:
                if param in self.state:
                    _fold(self.state[param], param)
        loss = super().step(closure)  # type: ignore[misc]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = float(rate)
        for state in self.state.values():
            _unfold(state)
        return loss

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        if p in self.kept or p.numel() % self.block_size:
            return torch.zeros_like(p, dtype=torch.float32)
        quantised: Tensor = OptimState8bit.zeros(
            p.shape, signed, self.block_size, p.device, dtype=p.dtype
        )
        return quantised


class _PlainAdamW8bit(_Plain, AdamW8bit):
    """AdamW8bit of torchao."""


class _PlainAdam8bit(_Plain, Adam8bit):
    """Adam8bit of torchao."""


def torchao_adam(
    groups: list[dict[str, Any]], option: EightBitAdam, kept: Collection[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer over some groups.

    Args:
        groups: Parameter groups.
        option: What is configured.
        kept: Parameters with 32-bit moments. Those that no whole number of blocks fills join them.
    """
    kind = _PlainAdamW8bit if option.decoupled else _PlainAdam8bit
    optimizer: _PlainAdamW8bit | _PlainAdam8bit = kind(
        groups,
        lr=option.lr,
        betas=option.betas,
        eps=option.eps,
        weight_decay=option.weight_decay,
        block_size=option.block_size,
    )
    optimizer.kept = kept
    return optimizer


def _unfold(state: dict[str, Any]) -> None:
    for moment in _MOMENTS:
        quantised = state.get(moment)
        if isinstance(quantised, OptimState8bit):
            del state[moment]
            state[f"{moment}.codes"] = quantised.codes
            state[f"{moment}.scale"] = quantised.scale


def _fold(state: dict[str, Any], param: Tensor) -> None:
    for moment, signed in _MOMENTS.items():
        if f"{moment}.codes" in state:
            codes, scale = state.pop(f"{moment}.codes"), state.pop(f"{moment}.scale")
            qmap = OptimState8bit.zeros((), signed, 1, codes.device).qmap
            state[moment] = OptimState8bit(codes, scale, qmap, signed, dtype=param.dtype)
