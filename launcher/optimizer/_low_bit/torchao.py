"""8-bit and 4-bit Adam of torchao, with plain tensors as state between steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torchao import optim
from torchao.optim.subclass_4bit import OptimState4bit
from torchao.optim.subclass_8bit import OptimState8bit

# True for signed moments.
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}


class _Plain:
    """Takes torchao's quantised tensors apart between steps."""

    # Between steps a moment is `<moment>.codes` (uint8: of 8 bits in the parameter's shape, of 4
    # bits flat, two to a byte) and `<moment>.scale` (float32, one per block): tensors that can be
    # saved and loaded by name.

    kept: Collection[nn.Parameter] = ()
    block_size: int
    _subclass_zeros: Callable[[Tensor, bool, int], Tensor]
    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        # The library's compiled step takes the rate as a tensor: a number would be compiled in, and
        # every new rate would compile again.
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
        return self._subclass_zeros(p, signed, self.block_size)


def plain(
    name: str,
    groups: list[dict[str, Any]],
    kept: Collection[nn.Parameter],
    values: dict[str, Any],
) -> torch.optim.Optimizer:
    """Build the library's optimizer `name`; moments of `kept` parameters have 32 bits."""
    # A warning of torch's compiler to the library: fewer kernels are found in the cache on disk.
    warnings.filterwarnings(
        "ignore", r"OptimState\dbit does not implement _stable_hash", UserWarning
    )
    kind = type(f"Plain{name}", (_Plain, getattr(optim, name)), {})
    optimizer: Any = kind(groups, **values)
    optimizer.kept = kept
    built: torch.optim.Optimizer = optimizer
    return built


def _unfold(state: dict[str, Any]) -> None:
    for moment in _MOMENTS:
        quantised = state.get(moment)
        if isinstance(quantised, OptimState4bit | OptimState8bit):
            del state[moment]
            state[f"{moment}.codes"] = quantised.codes
            state[f"{moment}.scale"] = quantised.scale


def _fold(state: dict[str, Any], param: Tensor) -> None:
    for moment, signed in _MOMENTS.items():
        if f"{moment}.codes" not in state:
            continue
        codes, scale = state.pop(f"{moment}.codes"), state.pop(f"{moment}.scale")
        packed = codes.numel() < param.numel()
        kind = OptimState4bit if packed else OptimState8bit
        qmap = kind.zeros((), signed, 1, codes.device).qmap
        shape = (param.shape,) if packed else ()
        state[moment] = kind(codes, scale, qmap, signed, *shape, dtype=param.dtype)
