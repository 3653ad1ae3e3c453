"""Sums over the shards of all parameters, packed for one collective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from launcher.optimizer._blocks import compute_dtype

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of one parameter's sums, by what is summed."""


class PackedSums:
    """Whole-size buffers of the sums of some parameters, one flat tensor per dtype.

    The layout is given by the parameters alone, so that it is the same on every rank, whatever
    elements and gradients a rank has. What a rank does not write is zero: one plain sum over ranks
    is then right for every kind of shard.

    Args:
        params: All parameters of the optimizer, in the order of its groups.
        shapes: Of each parameter's sums.
    """

    def __init__(self, params: Sequence[Tensor], shapes: Sequence[Shapes]) -> None:
        sizes = [sum(math.prod(shape) for shape in each.values()) for each in shapes]
        dtypes = [compute_dtype(param) for param in params]
        self._flat = {
            str(dtype): torch.zeros(
                # One more for each parameter: how many ranks have its gradient.
                sum(size + 1 for size, other in zip(sizes, dtypes, strict=True) if other == dtype),
                dtype=dtype,
                device=params[0].device,
            )
            for dtype in dict.fromkeys(dtypes)
        }
        self._views: list[dict[str, Tensor]] = []
        self._counts: list[Tensor] = []
        starts = dict.fromkeys(self._flat, 0)
        for each, dtype in zip(shapes, map(str, dtypes), strict=True):
            flat, start, views = self._flat[dtype], starts[dtype], {}
            for key, shape in each.items():
                stop = start + math.prod(shape)
                views[key] = flat[start:stop].view(shape)
                start = stop
            self._views.append(views)
            self._counts.append(flat[start])
            starts[dtype] = start + 1

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What must be added up over ranks."""
        return self._flat

    def clear(self) -> None:
        """Set all sums to zero."""
        torch._foreach_zero_(list(self._flat.values()))

    def count(self, places: Sequence[int]) -> None:
        """Note that this rank has the gradients of the parameters at some places."""
        if places:
            torch._foreach_add_([self._counts[place] for place in places], 1.0)

    def counts(self) -> list[float]:
        """Number of ranks that have each parameter's gradient; waits for the device."""
        return torch.stack([count.double() for count in self._counts]).tolist()

    def put(self, place: int, sums: Mapping[str, Tensor]) -> None:
        """Write this rank's sums of the parameter at a place."""
        for key, value in sums.items():
            self._views[place][key].copy_(value.view_as(self._views[place][key]))

    def take(self, place: int, sums: Mapping[str, Tensor]) -> None:
        """Overwrite this rank's sums by those of all ranks."""
        for key, value in sums.items():
            value.copy_(self._views[place][key].view_as(value))
