"""Base class of engines of several ranks: sums of losses, common decisions, all predictions."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Request
from launcher.errors import NonFinite
from launcher.parallelism._torch_engine import TorchEngine
from launcher.parallelism._used_modules import UsedModules

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from launcher.contracts import EngineParts, Window

# Largest message, and so largest extra copy, of the coalesced broadcast of buffers.
_BUFFER_BYTES = 25 * 2**20


class DistributedEngine(TorchEngine):
    """Base class of engines whose data ranks each compute a part of every window.

    Args:
        parts: See `EngineParts`.
        group: The ranks that read different data.

    Attributes:
        group: The ranks that read different data.
    """

    def __init__(self, parts: EngineParts, group: ProcessGroup) -> None:
        self.group = group
        self._has_running_buffers = _has_persistent_buffers(parts.module)
        self._shared = torch.zeros(1 + len(Request))
        self._pending: dist.Work | None = None
        super().__init__(parts)
        self._used_modules = (
            UsedModules(self.module, group) if self.gradient_sharding.ranks > 1 else None
        )

    @override
    def check_forward(self) -> None:
        if self._used_modules is not None:
            self._used_modules.check()

    @override
    def agree(self, request: Request) -> Request:
        flags = torch.tensor(_flags(request)).to(self.device)
        dist.all_reduce(flags, group=self.group)
        return _union(flags.tolist())

    @override
    def reduce_loss(self, loss: Tensor) -> None:
        # At least float32: a sum over ranks in bfloat16 would lose the digits of the loss.
        dtype = torch.promote_types(loss.dtype, torch.float32)
        zeros = [0.0] * len(self.auxiliary_losses)
        shared = torch.tensor([0.0, *_flags(self.requests()), *zeros], dtype=dtype)
        self._shared = shared.to(self.device, non_blocking=True)
        self._shared[0] = loss
        for place, (name, value) in enumerate(self.auxiliary_losses.items(), 1 + len(Request)):
            self._shared[place] = value
            self.auxiliary_losses[name] = self._shared[place]
        # One collective for loss, requests and auxiliary losses, behind the last backward pass.
        self._pending = dist.all_reduce(self._shared, group=self.group, async_op=True)
        self.mean_loss = self._shared[0]

    @override
    def forward_backward(self, window: Window) -> Tensor:
        if self._used_modules is not None:
            self._used_modules.clear()
        loss = super().forward_backward(window)
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        self.check_gradients()
        if self._has_running_buffers:
            self._share_buffers()
        return loss

    def check_gradients(self) -> None:
        """Check the gradients after a window's last backward pass, on this rank alone."""

    @override
    def check_finite(self, norm: Tensor) -> tuple[bool, Request]:
        # One read from the device for all: each one makes the host wait for the step.
        flags_end = 1 + len(Request)
        checked = torch.cat([(norm + self._shared[0]).view(1), self._shared[1:flags_end]])
        total, *flags = checked.tolist()
        return math.isfinite(total), _union(flags)

    @override
    def agree_on_error(self, error: NonFinite, *, bad_loss: bool) -> NonFinite:
        # Pickled objects are slow, but a failure happens once. All ranks must raise the same error:
        # a rank that went on would wait for the others in the next collective.
        mine = (self.world.rank, bad_loss, str(error), error.indices)
        found: list[Any] = [None] * self.world.size
        dist.all_gather_object(found, mine, group=self.group)
        for rank, bad, message, indices in found:
            if bad:
                return NonFinite(f"rank {rank}: {message}", indices)
        return NonFinite(str(error), [index for *_, indices in found for index in indices])

    @override
    def first_nonfinite_gradient(self) -> str | None:
        if self.gradient_sharding.ranks == 1:
            return super().first_nonfinite_gradient()
        # Each rank sees its own shards, and all must name the same parameter.
        bad = torch.zeros(len(self.params), device=self.params[0].device)
        for place, param in enumerate(self.params):
            if param.grad is not None and not param.grad.isfinite().all():
                bad[place] = 1
        self.gradient_sharding.add_up({"nonfinite": bad})
        names = self.parameter_names()
        return next((names[p] for p, n in zip(self.params, bad.tolist(), strict=True) if n), None)

    @override
    def gather_predictions(
        self, predictions: Sequence[Mapping[str, Tensor]]
    ) -> Iterable[Mapping[str, Tensor]]:
        # A pickled CUDA tensor would be restored on the sender's device.
        own = [{name: value.cpu() for name, value in each.items()} for each in predictions]
        found: list[Any] = [None] * self.world.size
        dist.all_gather_object(found, own, group=self.group)
        # Windows deal micro-batches to ranks in turn: this restores the order of the samples.
        return [each for turn in zip(*found, strict=True) for each in turn]

    @torch.no_grad()
    def _share_buffers(self) -> None:
        # Each rank's running statistics follow its own batches. DistributedDataParallel shares them
        # in the next forward pass: evaluations and checkpoints in between would differ by rank.
        # It calls this function too, which torch does not declare.
        broadcast: Any = dist._broadcast_coalesced  # type: ignore[attr-defined] # noqa: SLF001
        broadcast(self.group, list(self.module.buffers()), _BUFFER_BYTES, 0)


def _flags(request: Request) -> list[float]:
    # Numbers, because a sum over ranks is the union of requests, and needs no further collective.
    return [float(bool(member & request)) for member in Request]


def _union(flags: Sequence[float]) -> Request:
    found = (member for member, count in zip(Request, flags, strict=True) if count)
    return functools.reduce(operator.or_, found, Request.NONE)


def _has_persistent_buffers(module: nn.Module) -> bool:
    # Other buffers (rotary frequencies) are constants, which every rank computed itself.
    return bool(module.state_dict().keys() - dict(module.named_parameters(remove_duplicate=False)))
