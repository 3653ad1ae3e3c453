"""Load saved state into a live engine: by name, strictly, from full tensors or shards."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from launcher.contracts import (
    EngineState,
    LocalShard,
    Precision,
    Sharding,
    WeightAverage,
    is_sharded_state,
    param_of,
)
from launcher.errors import CheckpointError

_log = logging.getLogger("trainctl.engine")


def optimizer_shards(
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    sharding: Sharding,
) -> dict[str, Tensor | LocalShard]:
    """Describe the optimizer's state that is sharded like its parameter."""
    found: dict[str, Tensor | LocalShard] = dict(tensors)
    if sharding.ranks == 1:
        return found
    params = {name: param for param, name in names.items()}
    for entry, tensor in tensors.items():
        name = param_of(entry, params)
        if name is None:
            continue
        key = entry.removeprefix(f"optimizer.{name}.")
        # Of what is not one tensor (8-bit blocks with their scales) there are no shards.
        known = key in optimizer.state[params[name]]
        if known and is_sharded_state(optimizer, params[name], key):
            found[entry] = LocalShard(tensor, sharding.shard_of(params[name]))
    return found


def average_state(
    average: WeightAverage | None, names: Mapping[Tensor, str], sharding: Sharding
) -> dict[str, Tensor | LocalShard]:
    """Return the live state of a moving average: averages are sharded like their parameters."""
    if average is None:
        return {}
    params = {name: param for param, name in names.items()}
    found: dict[str, Tensor | LocalShard] = {
        f"ema_counter.{name}": value for name, value in average.counters().items()
    }
    for name, tensor in average.averages().items():
        is_full = sharding.ranks == 1
        shard = None if is_full else sharding.shard_of(params[name])
        found[f"ema.{name}"] = tensor if shard is None else LocalShard(tensor, shard)
    return found


def local_tensors(given: EngineState, live: EngineState) -> dict[str, Tensor]:
    """Return this rank's part of saved values, which are full tensors or this rank's shards."""
    return {name: _local(name, value, live.get(name)) for name, value in given.items()}


def load_model(live: EngineState, given: EngineState) -> None:
    """Copy parameters and buffers into live tensors, strictly by name and shape."""
    # All checks come before the first copy: an error must not leave half of another model.
    if given.keys() != live.keys():
        missing, left = sorted(live.keys() - given.keys()), sorted(given.keys() - live.keys())
        raise CheckpointError(
            f"the checkpoint is of another model: missing {missing[:5]}, unexpected {left[:5]}"
        )
    for name, own in live.items():
        if (shape := _shape(given[name])) != _shape(own):
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {shape}, must be {_shape(own)}"
            )
    with torch.no_grad():
        for name, tensor in local_tensors(given, live).items():
            own = live[name]
            (own.tensor if isinstance(own, LocalShard) else own).copy_(tensor)


def load_formats(precision: Precision, given: EngineState) -> None:
    """Load the precision's own state, if it is of the same precision."""
    # A resume may change the precision, as the error of the loss scale advises.
    fresh = precision.state()
    if given.keys() == fresh.keys():
        precision.load_state(local_tensors(given, {}))
        return
    _log.warning(
        "the checkpoint is of another precision: %s",
        "; ".join(
            [f"{name} starts at {value.item():g}" for name, value in fresh.items()]
            or [f"nothing needs {', '.join(given)} any more"]
        ),
    )


def _local(name: str, value: Tensor | LocalShard, own: Tensor | LocalShard | None) -> Tensor:
    if isinstance(value, LocalShard):
        if not isinstance(own, LocalShard):
            raise CheckpointError(f"{name} is sharded, but this engine holds whole tensors")
        # Equal numbers of elements are not enough: they would be loaded into the wrong rows.
        if own.shard.boxes != value.shard.boxes:
            raise CheckpointError(f"{name} is another shard than the one that this rank holds")
        return value.tensor
    if not isinstance(own, LocalShard):
        return value
    part = torch.empty_like(own.tensor, memory_format=torch.contiguous_format)
    own.shard.scatter(value, part)
    return part


def _shape(value: Tensor | LocalShard) -> tuple[int, ...]:
    return value.shard.shape if isinstance(value, LocalShard) else tuple(value.shape)
