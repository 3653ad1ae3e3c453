"""A network whose parameters are sharded in every way that an engine may shard them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.contracts import Box, Shard

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (11, 6),
    "blocks.0.up.weight": (7, 6),
    "blocks.0.up.bias": (7,),
    "blocks.0.norm.weight": (6,),
    "blocks.1.down.weight": (5, 8),
    "blocks.1.scale": (),
    "conv.weight": (3, 4, 5),
}

Layout = Callable[[str, tuple[int, ...], int, int], Shard]


def rows(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
    """Chunks of the first dim, as DTensor cuts: the last ones may be shorter or empty."""
    return _slices(name, shape, 0, rank, ranks)


def columns(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
    """Chunks of the last dim."""
    return _slices(name, shape, len(shape) - 1, rank, ranks)


def flat(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
    """An equal range of all parameters in a row, which cuts rows and leaves tensors out."""
    start = sum(math.prod(SHAPES[other]) for other in list(SHAPES)[: list(SHAPES).index(name)])
    size = -(-sum(map(math.prod, SHAPES.values())) // ranks)
    first = min(max(rank * size - start, 0), math.prod(shape))
    stop = min(max((rank + 1) * size - start, 0), math.prod(shape))
    return Shard.flat_range(name, shape, first, stop - first)


def pieces(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
    """A range of every parameter, which begins and ends within rows."""
    cuts = [round(math.prod(shape) * place / ranks) for place in range(ranks + 1)]
    return Shard.flat_range(name, shape, cuts[rank], cuts[rank + 1] - cuts[rank])


def uneven(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
    """One row on each rank, all others on the last."""
    if not shape:
        return rows(name, shape, rank, ranks)
    start = min(rank, shape[0])
    stop = shape[0] if rank == ranks - 1 else min(rank + 1, shape[0])
    return Shard.slice_of(name, shape, 0, start, stop)


def empty(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
    """Every tensor on one rank: the others hold nothing of it."""
    owner = list(SHAPES).index(name) % ranks
    return Shard.whole(name, shape) if rank == owner else Shard(name, shape, ())


def mixed(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
    """Matrices by rows; all else on every rank, counted on the last."""
    if len(shape) == 2:
        return rows(name, shape, rank, ranks)
    return Shard(name, shape, Shard.whole(name, shape).boxes, counted=rank == ranks - 1)


LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout for layout in (rows, columns, flat, pieces, uneven, empty, mixed)
}


def _slices(name: str, shape: tuple[int, ...], dim: int, rank: int, ranks: int) -> Shard:
    if not shape:
        return Shard(name, shape, (Box((), ()),) if rank == 0 else ())
    size = -(-shape[dim] // ranks)
    start, stop = (min(shape[dim], place * size) for place in (rank, rank + 1))
    return Shard.slice_of(name, shape, dim, start, stop)


class Shards:
    """A sharding over the default process group that counts its collectives.

    Args:
        shards: What each local parameter holds.
    """

    def __init__(self, shards: Mapping[Tensor, Shard]) -> None:
        self._shards = shards
        self.rank = dist.get_rank()
        self.ranks = dist.get_world_size()
        self.collectives = 0

    def shard_of(self, param: Tensor) -> Shard:
        """Return what a parameter holds."""
        return self._shards[param]

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of all ranks."""
        self.collectives += 1
        for value in sums.values():
            dist.all_reduce(value)


class Norm(nn.Module):
    """A layer whose parameters count as those of a normalisation."""


def whole_module(dtype: torch.dtype) -> nn.Module:
    """Return the network with whole parameters; the same on every rank."""
    module = nn.Module()
    generator = torch.Generator().manual_seed(7)
    for name, shape in SHAPES.items():
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        put(module, name, nn.Parameter(drawn.to(dtype)))
    return module


def put(module: nn.Module, name: str, param: nn.Parameter) -> None:
    """Set a parameter by name, and make the modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, Norm() if part == "norm" else nn.Module())
        module = getattr(module, part)
    module.register_parameter(last, param)


def local_module(
    whole: nn.Module, layout: Layout, rank: int, ranks: int
) -> tuple[nn.Module, dict[Tensor, Shard]]:
    """Return the network with one rank's shards in the place of its parameters, and the shards."""
    module = nn.Module()
    shards: dict[Tensor, Shard] = {}
    for name, param in whole.named_parameters():
        shard = layout(name, tuple(param.shape), rank, ranks)
        local = nn.Parameter(local_of(shard, param))
        put(module, name, local)
        shards[local] = shard
    return module, shards


def local_of(shard: Shard, whole: Tensor) -> Tensor:
    """Return what a shard holds of a whole tensor: in its box's shape, or flat."""
    [*sizes] = [box.sizes for box in shard.boxes]
    local = whole.detach().new_empty(sizes[0] if len(sizes) == 1 else (shard.numel,))
    shard.scatter(whole.detach(), local)
    return local


def gradient(name: str, at: Tensor, step: int, shard: Shard | None = None) -> Tensor:
    """Return a noisy quadratic's gradient, element by element, for a tensor or a shard of it.

    It grows in the middle of the run, so that updates are clipped.
    """
    target, curvature, noise = _drawn(name, step, at.dtype, shard)
    return (at.detach() - target) * curvature + noise


@cache
def _drawn(name: str, step: int, dtype: torch.dtype, shard: Shard | None) -> list[Tensor]:
    """Target, curvature and noise; the elements of a shard are those of the whole tensor."""
    if shard is not None:
        return [local_of(shard, each) for each in _drawn(name, step, dtype, None)]
    generator = torch.Generator().manual_seed(1000 * step + list(SHAPES).index(name))
    drawn = torch.randn((3, *SHAPES[name]), generator=generator, dtype=torch.float64).to(dtype)
    return [0.1 * drawn[1], 1.5 + drawn[2].sin(), drawn[0] * (30.0 if step == 3 else 0.3)]


def set_gradients(
    module: nn.Module,
    step: int,
    shards: Mapping[Tensor, Shard] | None = None,
    without: Sequence[str] = (),
) -> None:
    """Set the gradients of one step at the present parameters, but for some."""
    for name, param in module.named_parameters():
        shard = None if shards is None else shards[param]
        param.grad = None if name in without else gradient(name, param, step, shard)
