"""Optimizer state by parameter name, tensors only: any engine can load what another saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from launcher.errors import CheckpointError


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """The optimizer's state as `optimizer.<parameter>.<key>` and `optimizer_group.<index>.<key>`.

    Python numbers become tensors of shape (), float64 or int64. Of a group's options only those are
    taken that the optimizer itself changes; it names them in `group_state`.
    """
    _materialise(optimizer)
    tensors: dict[str, Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            for key, value in optimizer.state.get(param, {}).items():
                if value is not None:
                    tensors[f"optimizer.{names[param]}.{key}"] = _as_tensor(value)
        for key in getattr(optimizer, "group_state", ()):
            tensors[f"optimizer_group.{index}.{key}"] = _as_tensor(group[key])
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], state: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: A key is missing or left over.
    """
    expected = optimizer_tensors(optimizer, names)
    if expected.keys() != state.keys():
        missing, left = (
            sorted(expected.keys() - state.keys()),
            sorted(state.keys() - expected.keys()),
        )
        raise CheckpointError(
            f"the checkpoint is of another optimizer: missing {missing[:5]}, left over {left[:5]}"
        )
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            live = optimizer.state.get(param, {})
            for key, value in live.items():
                if value is not None:
                    live[key] = _like(value, state[f"optimizer.{names[param]}.{key}"])
        for key in getattr(optimizer, "group_state", ()):
            group[key] = _like(group[key], state[f"optimizer_group.{index}.{key}"])


def _materialise(optimizer: torch.optim.Optimizer) -> None:
    """Let a fresh optimizer allocate its state, by a step on zero gradients at learning rate zero.

    Only a resume needs this, before the first step, to know which tensors to ask the checkpoint
    for; whatever the step does to weights and state is overwritten by the load.
    """
    if optimizer.state:
        return
    params = [p for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    for param in params:
        param.grad = torch.zeros_like(param)
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["lr"] is not None else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def _like(live: Any, saved: Tensor) -> Any:
    """The saved value in the live one's form: a tensor in place, or a Python number."""
    if isinstance(live, Tensor):
        return live.copy_(saved)
    return type(live)(saved.item())
