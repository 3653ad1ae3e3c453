"""An engine for tests whose optimizer steps a part of every tensor: ZeRO stage 1 by hand.

Forward and backward are those of `ddp`. Each rank's optimizer holds some rows of every parameter
(uneven, none where there are fewer rows than ranks), steps them, and the rows are gathered again.
It shows that a sharding reaches the optimizers before there is an engine that shards for real.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import OptimizerTarget, Shard, UpdateStats
from launcher.parallelism import DDPEngine


class Rows:
    """Parameters that are rows of whole ones."""

    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.shards: dict[Tensor, Shard] = {}
        self.collectives = 0

    def shard_of(self, param: Tensor) -> Shard:
        return self.shards[param]

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        self.collectives += 1
        packed = torch.cat([value.flatten() for value in sums.values()])
        dist.all_reduce(packed)
        parts = torch.split(packed, [value.numel() for value in sums.values()])
        for value, part in zip(sums.values(), parts, strict=True):
            value.copy_(part.view_as(value))

    def local(self, name: str, param: nn.Parameter) -> nn.Parameter:
        """Return this rank's rows of a parameter; they share its memory."""
        start, stop = self.bounds(param)
        rows = nn.Parameter(param.detach()[start:stop])
        self.shards[rows] = Shard.slice_of(name, param.shape, 0, start, stop)
        return rows

    def bounds(self, param: Tensor, rank: int | None = None) -> tuple[int, int]:
        """Return the first row of a rank, and the one after its last."""
        rank = self.rank if rank is None else rank
        # Uneven on purpose: the first ranks hold more, as DTensor deals them.
        each = -(-len(param) // self.ranks)
        return min(rank * each, len(param)), min((rank + 1) * each, len(param))


class ShardedEngine(DDPEngine):
    """`ddp` whose optimizer steps rows."""

    @override
    def optimizer_target(self) -> OptimizerTarget:
        self._rows = Rows()
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        module = copy.deepcopy(self.module)
        for name, param in self.module.named_parameters():
            owner, _, last = name.rpartition(".")
            local = self._rows.local(name, param)
            setattr(module.get_submodule(owner), last, local)
            self._pairs.append((param, local))
        return OptimizerTarget(module, "cpu", self._rows)

    @override
    def trainable_parameters(self) -> list[nn.Parameter]:
        return [param for param in self.module.parameters() if param.requires_grad]

    @override
    def step_optimizer(self) -> None:
        for param, local in self._pairs:
            if param.grad is not None:
                start, stop = self._rows.bounds(param)
                local.grad = param.grad[start:stop]
        super().step_optimizer()
        for param, local in self._pairs:
            local.grad = None
            for rank in range(self._rows.ranks):
                start, stop = self._rows.bounds(param, rank)
                if stop > start:
                    dist.broadcast(param.data[start:stop], rank)

    @override
    def update(self, lr: float | None) -> UpdateStats:
        stats = super().update(lr)
        # The optimizer clears the gradients of what it holds, which are the rows.
        for param in self.trainable_parameters():
            param.grad = None
        return stats

    @override
    def parameter_names(self) -> dict[Tensor, str]:
        return {local: self._rows.shards[local].name for _, local in self._pairs}
