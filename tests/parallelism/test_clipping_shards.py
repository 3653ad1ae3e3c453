"""Limits on gradients that are sharded over ranks: those of the whole tensors."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.contracts import Clipping, Shard
from launcher.parallelism._clipping import clip_, gradient_norm
from tests.distributed import run_on_ranks
from tests.parallelism.test_clipping import LIMITS, params_with_grads

LAYOUTS = ("rows", "flat", "replicated")


class Sharded:
    """Shards of some tensors, and sums over all ranks."""

    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.shards: dict[Tensor, Shard] = {}

    def shard_of(self, param: Tensor) -> Shard:
        return self.shards[param]

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        for value in sums.values():
            dist.all_reduce(value)

    def local(self, name: str, param: nn.Parameter, layout: str) -> nn.Parameter:
        """Return this rank's part of a parameter and of its gradient."""
        shard = self.describe(name, param, layout)
        self.shards[local := nn.Parameter(torch.zeros(shard.numel))] = shard
        if param.grad is not None:
            local.grad = torch.cat(
                [param.grad[box.slices].flatten() for box in shard.boxes] or [torch.zeros(0)]
            )
        return local

    def describe(self, name: str, param: nn.Parameter, layout: str) -> Shard:
        if layout == "replicated" or param.ndim == 0:
            whole = Shard.whole(name, param.shape)
            return Shard(name, whole.shape, whole.boxes, counted=self.rank == 0)
        size = len(param) if layout == "rows" else param.numel()
        each = -(-size // self.ranks)
        start, stop = min(self.rank * each, size), min((self.rank + 1) * each, size)
        if layout == "rows":
            return Shard.slice_of(name, param.shape, 0, start, stop)
        return Shard.flat_range(name, param.shape, start, stop - start)


def compare(layout: str, limits: Clipping) -> float:
    """Largest difference between clipped shards and the same parts of clipped tensors."""
    whole, sharding = params_with_grads(), Sharded()
    local = [sharding.local(str(i), p, layout) for i, p in enumerate(whole)]
    norm = gradient_norm(local, sharding)
    torch.testing.assert_close(norm, gradient_norm(whole))
    clip_(whole, limits, norm)
    clip_(local, limits, norm, sharding)
    worst = 0.0
    for param, part in zip(whole, local, strict=True):
        assert (param.grad is None) == (part.grad is None)
        if param.grad is not None and part.grad is not None and part.numel():
            boxes = sharding.shard_of(part).boxes
            expected = torch.cat([param.grad[box.slices].flatten() for box in boxes])
            difference = (part.grad - expected).abs() / (expected.abs() + 1e-12)
            worst = max(worst, difference.max().item())
    return worst


def compare_all(layout: str) -> list[float]:
    return [compare(layout, limits) for limits in LIMITS]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_are_clipped_as_whole_tensors(layout: str, ranks: int) -> None:
    for worst in run_on_ranks(compare_all, layout, ranks=ranks):
        assert max(worst) < 1e-5
