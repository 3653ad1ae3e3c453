"""Data-parallel training with whole weights on every rank, through DistributedDataParallel."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
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

from launcher.errors import ConfigError, Problem
from launcher.parallelism._distributed_engine import DistributedEngine

if TYPE_CHECKING:
    from launcher.contracts import EngineParts, Window
    from launcher.parallelism.ddp import DDP

_NAMED = 5
# Not torch's compression hooks: they average over ranks, and that for bf16 requires NCCL.
_COMPRESSED = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


class DDPEngine(DistributedEngine):
    """Train on several ranks that each hold the whole model."""

    def __init__(self, parts: EngineParts, option: DDP) -> None:
        world = parts.world
        device_type = torch.device(world.device).type
        self._mesh = init_device_mesh(device_type, (world.size,), mesh_dim_names=("dp_replicate",))
        self._option = option
        # The first window with a static graph must not use no_sync (torch's reducer asserts), so
        # that its earlier micro-batches are kept local by the communication hook instead.
        self._hook_is_local = False
        self._is_first_window = True
        self._summed_elements = 0
        super().__init__(parts, self._mesh.get_group())
        # Counted once: every step compares it with the number of summed gradients.
        self._num_elements = sum(param.numel() for param in self.params)

    @override
    def close(self) -> None:
        # The wrapper's hooks hold the process group.
        self.wrapped = self.module

    @override
    def wrap_module(self, module: nn.Module) -> nn.Module:
        wrapped = self.distributed(module)
        wrapped.register_comm_hook(None, self._sum_hook())
        return wrapped

    def distributed(self, module: nn.Module) -> DistributedDataParallel:
        """Return the wrapper that exchanges gradients, without a communication hook."""
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            device_mesh=self._mesh,
            bucket_cap_mb=self._option.bucket_mb,
            gradient_as_bucket_view=self._option.gradient_as_bucket_view,
            static_graph=self._option.static_graph,
            find_unused_parameters=self._option.find_unused_parameters,
            **_without_buffers(),
        )

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
    def forward_backward(self, window: Window) -> Tensor:
        self._summed_elements = 0
        loss = super().forward_backward(window)
        self._is_first_window = False
        return loss

    @override
    def check_gradients(self) -> None:
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
            work = dist.all_reduce(sent, group=self.group, async_op=True)
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


def _without_buffers() -> dict[str, Any]:
    # `_share_buffers` does it later, where evaluations and checkpoints see the result.
    known = inspect.signature(DistributedDataParallel).parameters
    # Renamed in torch 2.13, where the old name warns.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}
