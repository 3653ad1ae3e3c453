"""Data-parallel training with whole weights on every rank, through DistributedDataParallel."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined] # missing in its __all__
from torch.distributed.device_mesh import init_device_mesh
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from launcher.contracts import Request
from launcher.errors import ConfigError, NonFinite, Problem
from launcher.parallelism._torch_engine import TorchEngine

if TYPE_CHECKING:
    from launcher.contracts import EngineParts, Window
    from launcher.parallelism.ddp import DDP

_NAMED = 5
# Largest message, and so largest extra copy, of the coalesced broadcast of buffers.
_BUFFER_BYTES = 25 * 2**20
# Not torch's compression hooks: they average over ranks, and that for bf16 requires NCCL.
_COMPRESSED = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


class DDPEngine(TorchEngine):
    """Train on several ranks that each hold the whole model."""

    def __init__(self, parts: EngineParts, option: DDP) -> None:
        world = parts.world
        device = torch.device(world.device)
        mesh = init_device_mesh(device.type, (world.size,), mesh_dim_names=("dp_replicate",))
        self._mesh = mesh
        self._group = mesh.get_group()
        self._option = option
        # The first window with a static graph must not use no_sync (torch's reducer asserts), so
        # that its earlier micro-batches are kept local by the communication hook instead.
        self._hook_is_local = False
        self._is_first_window = True
        self._summed_elements = 0
        self._has_running_buffers = _has_persistent_buffers(parts.module)
        self._shared = torch.zeros(1 + len(Request))
        self._pending: dist.Work | None = None
        super().__init__(parts)
        # Counted once: every step compares it with the number of summed gradients.
        self._num_elements = sum(param.numel() for param in self.params)

    @override
    def agree(self, request: Request) -> Request:
        flags = torch.tensor(_flags(request)).to(self.device)
        dist.all_reduce(flags, group=self._group)
        return _union(flags.tolist())

    @override
    def close(self) -> None:
        # The wrapper's hooks hold the process group.
        self.wrapped = self.module

    @override
    def wrap_module(self, module: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            device_mesh=self._mesh,
            bucket_cap_mb=self._option.bucket_mb,
            gradient_as_bucket_view=self._option.gradient_as_bucket_view,
            static_graph=self._option.static_graph,
            find_unused_parameters=self._option.find_unused_parameters,
            **_without_buffers(),
        )
        wrapped.register_comm_hook(None, self._sum_hook())
        return wrapped

    @override
    def accumulation_context(self, *, last: bool) -> AbstractContextManager[object]:
        if last:
            return contextlib.nullcontext()
        if self._option.static_graph and self._is_first_window:
            return self._local_hook()
        # Without it every micro-batch would all-reduce its gradients.
        assert isinstance(self.wrapped, DistributedDataParallel)  # noqa: S101 - made by _wrap
        return self.wrapped.no_sync()

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
        self._pending = dist.all_reduce(self._shared, group=self._group, async_op=True)
        self.mean_loss = self._shared[0]

    @override
    def forward_backward(self, window: Window) -> Tensor:
        self._summed_elements = 0
        loss = super().forward_backward(window)
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        self._check_all_summed()
        if self._has_running_buffers:
            self._share_buffers()
        self._is_first_window = False
        return loss

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
        dist.all_gather_object(found, mine, group=self._group)
        for rank, bad, message, indices in found:
            if bad:
                return NonFinite(f"rank {rank}: {message}", indices)
        return NonFinite(str(error), [index for *_, indices in found for index in indices])

    @override
    def gather_predictions(
        self, predictions: Sequence[Mapping[str, Tensor]]
    ) -> Iterable[Mapping[str, Tensor]]:
        # A pickled CUDA tensor would be restored on the sender's device.
        own = [{name: value.cpu() for name, value in each.items()} for each in predictions]
        found: list[Any] = [None] * self.world.size
        dist.all_gather_object(found, own, group=self._group)
        # Windows deal micro-batches to ranks in turn: this restores the order of the samples.
        return [each for turn in zip(*found, strict=True) for each in turn]

    def _check_all_summed(self) -> None:
        # torch's reducer would notice it in the next forward pass, after a wrong update.
        if self._summed_elements == self._num_elements:
            return
        idle = [
            name for p, name in self.parameter_names().items() if p.requires_grad and p.grad is None
        ]
        where = f" ({', '.join(idle[:_NAMED])})" if idle else ""
        raise ConfigError(
            [
                Problem(
                    "parallelism.find_unused_parameters",
                    f"must be true, because some parameters take no part in the loss{where}",
                )
            ]
        )

    @torch.no_grad()
    def _share_buffers(self) -> None:
        # Each rank's running statistics follow its own batches. DistributedDataParallel shares them
        # in the next forward pass: evaluations and checkpoints in between would differ by rank.
        # It calls this function too, which torch does not declare.
        broadcast: Any = dist._broadcast_coalesced  # type: ignore[attr-defined] # noqa: SLF001
        broadcast(self._group, list(self.module.buffers()), _BUFFER_BYTES, 0)

    def _sum_hook(self) -> Callable[[object, GradBucket], Future[Tensor]]:
        dtype = _COMPRESSED[self._option.gradient_compression]

        def hook(_state: object, bucket: GradBucket) -> Future[Tensor]:
            whole = bucket.buffer()
            if self._hook_is_local:
                kept: Future[Tensor] = Future()
                kept.set_result(whole)
                return kept
            # Summed, not averaged: every loss is divided by the number of targets over all ranks,
            # so that ranks with fewer targets weigh less.
            self._summed_elements += whole.numel()
            sent = whole if dtype is None else whole.to(dtype)
            work = dist.all_reduce(sent, group=self._group, async_op=True)
            future: Future[list[Tensor]] = work.get_future()

            def received(done: Future[list[Tensor]]) -> Tensor:
                [total] = done.value()
                # The reducer expects the bucket's own format.
                return total if dtype is None else whole.copy_(total)

            return future.then(received)

        # torch compares the annotations themselves, which are text in this module.
        hook.__annotations__ = {"bucket": GradBucket, "return": Future[Tensor]}
        return hook

    @contextlib.contextmanager
    def _local_hook(self) -> Any:
        self._hook_is_local = True
        try:
            yield
        finally:
            self._hook_is_local = False


def _flags(request: Request) -> list[float]:
    # Numbers, because a sum over ranks is the union of requests, and needs no further collective.
    return [float(bool(member & request)) for member in Request]


def _union(flags: Sequence[float]) -> Request:
    found = (member for member, count in zip(Request, flags, strict=True) if count)
    return functools.reduce(operator.or_, found, Request.NONE)


def _has_persistent_buffers(module: nn.Module) -> bool:
    # Other buffers (rotary frequencies) are constants, which every rank computed itself.
    return bool(module.state_dict().keys() - dict(module.named_parameters(remove_duplicate=False)))


def _without_buffers() -> dict[str, Any]:
    # `_share_buffers` does it later, where evaluations and checkpoints see the result.
    known = inspect.signature(DistributedDataParallel).parameters
    # Renamed in torch 2.13, where the old name warns.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}
