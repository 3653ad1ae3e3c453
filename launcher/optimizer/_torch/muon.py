"""Muon on shards of matrices, and a pair of optimizers that acts as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Sharding
from launcher.optimizer._torch.base_optimizer import BaseOptimizer

# Elements of the full matrices that exist at once: 128 MiB of float32. Smaller batches would leave
# ranks without a matrix to work on.
_BATCH_ELEMENTS = 1 << 25

Member = tuple[nn.Parameter, Mapping[str, Any]]


class ShardedMuon(BaseOptimizer):
    """torch's Muon for matrices of which each rank holds any part."""

    # The momentum is sharded like the matrix. In a step the ranks sum their parts of the update
    # into full matrices, each owner orthogonalises its own, and a second sum brings the results to
    # all ranks, which take what they hold: two collectives for each batch of matrices.

    kept = ("_sharding",)

    def __init__(self, params: Iterable[Any], *, sharding: Sharding, **muon: Any) -> None:
        super().__init__(params, muon)
        self._sharding = sharding

    @override
    def _step(self) -> None:
        for place, batch in enumerate(self._batches()):
            wholes = [self._whole_update(param, group) for param, group in batch]
            self._add_up(wholes)
            self._orthogonalise(batch, wholes, first=place)
            self._add_up(wholes)
            for (param, group), whole in zip(batch, wholes, strict=True):
                if param.grad is not None:
                    change = torch.empty_like(param)
                    self._sharding.shard_of(param).scatter(whole, change)
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(change)

    def _batches(self) -> Iterator[list[Member]]:
        # All matrices, with or without gradient on this rank: all ranks must form equal batches.
        batch: list[Member] = []
        elements = 0
        for group in self.param_groups:
            for param in group["params"]:
                size = self._sharding.shard_of(param).whole_numel
                if batch and elements + size > _BATCH_ELEMENTS:
                    yield batch
                    batch, elements = [], 0
                batch.append((param, group))
                elements += size
        yield batch

    def _whole_update(self, param: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
        # Zeros where other ranks hold the matrix, so that a sum over ranks is the full update.
        shard = self._sharding.shard_of(param)
        whole = param.new_zeros(shard.shape)
        if param.grad is None:
            return whole
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param.grad)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(param.grad, 1 - group["momentum"])
        if shard.counted:
            update = param.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            shard.gather(update, whole)
        return whole

    def _orthogonalise(
        self, batch: Sequence[Member], updates: Sequence[Tensor], first: int
    ) -> None:
        # Matrices go round the ranks, each batch beginning with the next rank, so that a rank does
        # not own the first matrix of every batch. Others' updates are zero in the next sum.
        for place, ((_, group), update) in enumerate(zip(batch, updates, strict=True), first):
            if place % self._sharding.ranks != self._sharding.rank:
                update.zero_()
                continue
            # torch has no public function of the update: from zero, without momentum and decay, a
            # step of its Muon is the change of the weights.
            step = nn.Parameter(torch.zeros_like(update))
            step.grad = update
            options = {**self.defaults, "lr": group["lr"], "weight_decay": 0.0, "momentum": 0.0}
            muon: torch.optim.Optimizer = torch.optim.Muon([step], **options | {"nesterov": False})
            muon.step()
            update.copy_(step)

    def _add_up(self, tensors: Sequence[Tensor]) -> None:
        # One collective for each dtype: one for each matrix would cost its latency many times.
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            packed = torch.cat([tensor.view(-1) for tensor in same])
            self._sharding.add_up({str(dtype): packed})
            sums = torch.split(packed, [tensor.numel() for tensor in same])
            for tensor, total in zip(same, sums, strict=True):
                tensor.copy_(total.view_as(tensor))


class Pair(BaseOptimizer):
    """Steps two optimizers as one."""

    # Its `param_groups` are those of both, and its `state` is the one dict that both write to:
    # engines and checkpoints see a single optimizer.

    kept = ("_members",)

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._members = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share(self.param_groups)

    @override
    def _step(self) -> None:
        for member in self._members:
            member.step()

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share(self.param_groups)

    def _share(self, groups: list[dict[str, Any]]) -> None:
        # Again after each load: torch replaces groups and state.
        start = 0
        for member in self._members:
            count = len(member.param_groups)
            member.param_groups = groups[start : start + count]
            member.state = self.state
            start += count
