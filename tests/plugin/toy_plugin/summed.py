"""Data parallelism that sums the gradients after the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Engine, EngineParts, Layout, ParallelismOption, Request, Window

if TYPE_CHECKING:
    from torch import Tensor


class Summed(ParallelismOption):
    """Whole weights on every rank; gradients are summed tensor by tensor."""

    max_ranks: int = Field(gt=0)
    """Most ranks that this engine is used for."""

    @override
    def layout(self, ranks: int) -> Layout:
        if ranks > self.max_ranks:
            raise ValueError(
                f"summed is for at most {self.max_ranks} ranks, but launch has {ranks}"
            )
        return Layout(dp_replicate=ranks)

    @override
    def build(self, parts: EngineParts) -> Engine:
        import torch

        from launcher.parallelism import TorchEngine

        class SummedEngine(TorchEngine):
            union = Request.NONE

            @override
            def forward_backward(self, window: Window) -> Tensor:
                loss = super().forward_backward(window)
                for param in self.params:
                    if param.grad is not None:
                        _add_up(param.grad)
                return loss

            @override
            def agree(self, request: Request) -> Request:
                counts = torch.tensor(_flags(request))
                _add_up(counts)
                return _union(counts.tolist())

            @override
            def reduce_loss(self, loss: Tensor) -> None:
                sums = torch.tensor([loss.item(), *_flags(self.requests())])
                _add_up(sums)
                self.mean_loss = sums[0]
                self.union = _union(sums[1:].tolist())

            @override
            def check_finite(self, norm: Tensor) -> tuple[bool, Request]:
                return math.isfinite((norm + self.mean_loss).item()), self.union

            @override
            def gather_predictions(
                self, predictions: Sequence[Mapping[str, Tensor]]
            ) -> Iterable[Mapping[str, Tensor]]:
                return _gathered(predictions, parts.world.size)

        return SummedEngine(parts)


def _flags(request: Request) -> list[float]:
    return [float(bool(member & request)) for member in Request]


def _union(counts: Sequence[float]) -> Request:
    found = Request.NONE
    for member, count in zip(Request, counts, strict=True):
        found |= member if count else Request.NONE
    return found


def _add_up(total: Tensor) -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(total)


def _gathered(
    predictions: Sequence[Mapping[str, Tensor]], ranks: int
) -> Sequence[Mapping[str, Tensor]]:
    import torch.distributed as dist

    if ranks == 1:
        return predictions
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, list(predictions))
    return [each for turn in zip(*found, strict=True) for each in turn]
