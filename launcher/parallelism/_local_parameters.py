"""Local tensors in the place of whole parameters: what optimizers and exports see of shards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from launcher.contracts import Shard


def with_parameters(
    module: nn.Module, replacements: Mapping[nn.Parameter, nn.Parameter]
) -> nn.Module:
    """Return a copy of a module with other parameters; buffers are shared, names and classes stay.

    Not a deepcopy: that would copy weights and whatever the hooks of wrappers hold. To be called
    before the module is wrapped, so that the copy has no hooks of the wrapper.
    """
    copies: dict[int, nn.Module] = {}
    for part in module.modules():
        copied = object.__new__(type(part))
        # Own dicts: a wrapper adds hooks to those of the original in place.
        copied.__dict__ = {
            key: value.copy() if isinstance(value, dict) else value
            for key, value in part.__dict__.items()
            # What `compile` has set calls the original.
            if key != "_compiled_call_impl"
        }
        copies[id(part)] = copied
    for part in module.modules():
        own = copies[id(part)].__dict__
        own["_modules"] = {
            name: None if child is None else copies[id(child)]
            for name, child in part._modules.items()  # noqa: SLF001 - `named_children` leaves out
        }
        own["_parameters"] = {
            name: None if param is None else replacements[param]
            for name, param in part._parameters.items()  # noqa: SLF001 - likewise
        }
    return copies[id(module)]


class GroupSharding:
    """Shards over the ranks of a process group; see `Sharding`.

    Args:
        group: The ranks that share the tensors.
        shards: Description of each parameter of the optimizer.
        device: Where the group communicates, if the parameters are somewhere else.
    """

    def __init__(
        self,
        group: ProcessGroup,
        shards: Mapping[Tensor, Shard],
        device: torch.device | None = None,
    ) -> None:
        self._group = group
        self._shards = shards
        self._device = device
        self.rank = dist.get_rank(group)
        self.ranks = dist.get_world_size(group)

    def shard_of(self, param: Tensor) -> Shard:
        return self._shards[param]

    @torch.no_grad()
    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for value in sums.values():
            by_kind.setdefault((value.device, value.dtype), []).append(value)
        for values in by_kind.values():
            is_there = self._device is None or values[0].device.type == self._device.type
            if len(values) == 1 and values[0].is_contiguous() and is_there:
                dist.all_reduce(values[0], group=self._group)
                continue
            packed = torch.cat([value.reshape(-1) for value in values]).to(self._device)
            dist.all_reduce(packed, group=self._group)
            parts = torch.split(packed, [value.numel() for value in values])
            for value, part in zip(values, parts, strict=True):
                value.copy_(part.view_as(value))


def row_range(length: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return a rank's first row and the one after its last, as fully_shard cuts them."""
    each = -(-length // ranks)
    return min(rank * each, length), min((rank + 1) * each, length)
