"""Optimizer state by parameter name, tensors only: any engine can load what another saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from launcher.contracts import param_of
from launcher.errors import CheckpointError


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """The optimizer's state as `optimizer.<parameter>.<key>` and `optimizer_group.<group>.<key>`.

    A parameter that no update has reached yet has no entry. Python numbers become tensors of shape
    (), float64 or int64; lists and tensors that are made of others (8-bit blocks with their scales)
    become one entry for each part. Of a group's options only those are taken that the optimizer
    itself changes; it names them in `group_state`.
    """
    tensors: dict[str, Tensor] = {}
    for holder, key, name in _places(optimizer, names):
        tensors |= _flatten(name, holder[key])
    return tensors


def optimizer_template(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """What `optimizer_tensors` gives when updates have reached every parameter.

    It takes a step on zero gradients at learning rate zero, which leaves traces in optimizer and
    weights: to be called only where a load overwrites both.
    """
    _materialise(optimizer)
    return optimizer_tensors(optimizer, names)


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], state: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; a parameter of which it gave nothing has no state.

    Raises:
        CheckpointError: A key is missing or left over.
    """
    expected = optimizer_template(optimizer, names)
    params = frozenset(names.values())
    reached = {param_of(entry, params) for entry in state} | {None}
    needed = {entry for entry in expected if param_of(entry, params) in reached}
    if needed != state.keys():
        missing, left = sorted(needed - state.keys()), sorted(state.keys() - needed)
        raise CheckpointError(
            f"the checkpoint is of another optimizer: missing {missing[:5]}, left over {left[:5]}"
        )
    _forget(optimizer, [param for param, name in names.items() if name not in reached])
    for holder, key, name in _places(optimizer, names):
        holder[key] = _refill(name, holder[key], state)


def _places(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Where state stands: the dictionary, the key in it, and the name of the entry."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            yield from ((state, key, f"optimizer.{names[param]}.{key}") for key in list(state))
        for key in getattr(optimizer, "group_state", ()):
            yield group, key, f"optimizer_group.{group['name']}.{key}"


def _flatten(name: str, value: Any) -> dict[str, Tensor]:
    if value is None:
        return {}
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            parts = {part: getattr(value, part) for part in value.__tensor_flatten__()[0]}
            return {
                k: t for part, v in parts.items() for k, t in _flatten(f"{name}.{part}", v).items()
            }
        return {name: value}
    if isinstance(value, list | tuple):
        return {k: t for i, v in enumerate(value) for k, t in _flatten(f"{name}.{i}", v).items()}
    return {
        name: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    }


def _refill(name: str, live: Any, state: Mapping[str, Tensor]) -> Any:
    """The saved value in the live one's form: tensors in place, numbers as they were."""
    if live is None:
        return None
    if isinstance(live, Tensor):
        if is_traceable_wrapper_subclass(live):
            for part in live.__tensor_flatten__()[0]:
                _refill(f"{name}.{part}", getattr(live, part), state)
            return live
        return live.copy_(state[name])
    if isinstance(live, list | tuple):
        return type(live)(_refill(f"{name}.{i}", value, state) for i, value in enumerate(live))
    return type(live)(state[name].item())


def _materialise(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer allocate the state of each parameter that has none."""
    params = [
        p for group in optimizer.param_groups for p in group["params"] if not optimizer.state.get(p)
    ]
    if not params:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for param in params:
        param.grad = torch.zeros_like(param)
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["lr"] is not None else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _forget(optimizer: torch.optim.Optimizer, params: Iterable[Tensor]) -> None:
    """Take the state of some parameters away, as if they had never been stepped."""
    if not [param for param in params if optimizer.state.pop(param, None)]:
        return
    # As torch's own load_state_dict ends: some optimizers keep more than what stands in `state`.
    optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
