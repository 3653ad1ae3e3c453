"""Optimizer state by parameter name, as tensors, so that any engine loads another's."""

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
    """Return the state by name: `optimizer.<parameter>.<key>`, `optimizer_group.<group>.<key>`.

    A parameter that no update has reached yet has no entry. Python numbers become tensors of shape
    (); lists and composite tensors (8-bit blocks with their scales) become one entry per part.
    """
    tensors: dict[str, Tensor] = {}
    for holder, key, name in _places(optimizer, names):
        tensors |= _flatten(name, holder[key])
    return tensors


def optimizer_template(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    stateless: set[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return what `optimizer_tensors` returns after updates have reached every parameter.

    It takes a step on zero gradients at learning rate zero, which may change optimizer and
    weights: call it only where a load overwrites both. Parameters in `stateless` have no state
    after a step and are not stepped again; those found now are added.
    """
    _materialise(optimizer, set() if stateless is None else stateless)
    return optimizer_tensors(optimizer, names)


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    state: Mapping[str, Tensor],
    stateless: set[Tensor] | None = None,
) -> None:
    """Load what `optimizer_tensors` returned; a parameter without entries has no state.

    Raises:
        CheckpointError: A key is missing or unexpected.
    """
    # Only the optimizer knows its keys and shapes, and it allocates them in its first step.
    expected = optimizer_template(optimizer, names, stateless)
    params = frozenset(names.values())
    # A run can be saved before some parameters had a gradient (skipped updates, unused layers):
    # they have no entries, and must have none after the load either.
    reached = {param_of(entry, params) for entry in state} | {None}
    needed = {entry for entry in expected if param_of(entry, params) in reached}
    if needed != state.keys():
        missing, left = sorted(needed - state.keys()), sorted(state.keys() - needed)
        raise CheckpointError(
            f"the checkpoint is of another optimizer: missing {missing[:5]}, unexpected {left[:5]}"
        )
    _forget(optimizer, [param for param, name in names.items() if name not in reached])
    for holder, key, name in _places(optimizer, names):
        holder[key] = _refill(name, holder[key], state)


def _places(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> Iterator[tuple[dict[str, Any], str, str]]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            yield from ((state, key, f"optimizer.{names[param]}.{key}") for key in list(state))
        # Other options of a group come from the config, which may change at a resume.
        for key in getattr(optimizer, "group_state", ()):
            yield group, key, f"optimizer_group.{group['name']}.{key}"


def _flatten(name: str, value: Any) -> dict[str, Tensor]:
    if value is None:
        return {}
    if isinstance(value, Tensor):
        # 8-bit and 4-bit tensors: their blocks and scales are plain tensors, saved without pickle.
        if is_traceable_wrapper_subclass(value):
            parts = {part: getattr(value, part) for part in value.__tensor_flatten__()[0]}
            return {
                k: t for part, v in parts.items() for k, t in _flatten(f"{name}.{part}", v).items()
            }
        return {name: value}
    if isinstance(value, list | tuple):
        return {k: t for i, v in enumerate(value) for k, t in _flatten(f"{name}.{i}", v).items()}
    # float64 and int64 hold every Python number that optimizers keep (steps, betas) exactly.
    return {
        name: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    }


def _refill(name: str, live: Any, state: Mapping[str, Tensor]) -> Any:
    # In place: device and format of the live tensor are the optimizer's choice.
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


def _materialise(optimizer: torch.optim.Optimizer, stateless: set[Tensor]) -> None:
    params = [
        param
        for group in optimizer.param_groups
        for param in group["params"]
        if param not in stateless and not optimizer.state.get(param)
    ]
    if not params:
        return
    # At rate zero the update itself is zero; None is Adafactor's own rate, which it requires.
    rates = [group["lr"] for group in optimizer.param_groups]
    for param in params:
        param.grad = torch.zeros_like(param)
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["lr"] is not None else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    stateless.update(param for param in params if not optimizer.state.get(param))


def _forget(optimizer: torch.optim.Optimizer, params: Iterable[Tensor]) -> None:
    # The step on zero gradients gave them state, but in the saved run they had none.
    if not [param for param in params if optimizer.state.pop(param, None)]:
        return
    # As torch's load_state_dict does: some optimizers keep more than `state`.
    optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
