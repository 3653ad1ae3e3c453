"""Data-parallel training with sharded parameters, through FSDP2's fully_shard."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from typing_extensions import override

from launcher.blocks import sharded_blocks
from launcher.contracts import LocalShard, OptimizerTarget, Shard, canonical_name, named_tensors
from launcher.errors import ConfigError, Problem
from launcher.parallelism._distributed_engine import DistributedEngine
from launcher.parallelism._local_parameters import GroupSharding, row_range, with_parameters

if TYPE_CHECKING:
    from launcher.contracts import EngineParts, Window
    from launcher.parallelism.fsdp import FSDP

_log = logging.getLogger("trainctl.engine")


class FSDPEngine(DistributedEngine):
    """Train on several ranks that each hold a part of every parameter.

    The optimizer steps plain tensors that share the memory of FSDP's shards: an operation on a
    DTensor costs many times the step of a small model.
    """

    def __init__(self, parts: EngineParts, option: FSDP) -> None:
        self._option = option
        self._mesh = _mesh(parts)
        self._weights = parts.weights
        everyone = dist.group.WORLD
        assert everyone is not None, "a run of several ranks has a process group"  # noqa: S101
        super().__init__(parts, everyone)

    @override
    def place_module(self, module: nn.Module) -> nn.Module:
        # Block by block, when each is sharded: no device holds the whole module.
        return module

    @override
    def wrap_module(self, module: nn.Module) -> nn.Module:
        _check_dims(module)
        # Without memory, and the place of whole or local parameters when they are needed.
        self._plain = with_parameters(module, {p: _on_meta(p) for p in module.parameters()})
        kinds = self.shard(module)
        for part in _fsdp_modules(module):
            # Losses are divided by the targets of all ranks: gradients are added, not averaged.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(enable=True)
        if self.world.rank == 0:
            _log.info(
                "fsdp gathers %d blocks%s one by one, and the other parameters together",
                len(kinds),
                f" ({', '.join(sorted(set(kinds)))})" if kinds else "",
            )
        if self._weights is not None:
            # fully_shard keeps the parameters in the host's memory, but not the buffers.
            module.to_empty(device="cpu" if self._option.offload else self.device)
            _move_buffers(module, self.device)
        self._describe(module)
        if self._weights is not None:
            self._weights.fill(self._live | _buffers(module))
            self._weights.check(module)
            self.end_evaluation()
        return module

    def shard(self, module: nn.Module) -> list[str]:
        """Shard the module in place; return the class names of its blocks."""
        blocks = sharded_blocks(module, self._option.wrap, "parallelism.wrap")
        offload = OffloadPolicy()
        if self._option.offload:
            offload = CPUOffloadPolicy(pin_memory=self.device.type != "cpu")
        policy = self.reduction()
        for block in blocks.values():
            fully_shard(
                block,
                mesh=self._mesh,
                reshard_after_forward=self._option.reshard_after_forward,
                mp_policy=policy,
                offload_policy=offload,
            )
        # Without an argument, torch keeps the parameters of this group until the backward pass,
        # which begins with them.
        fully_shard(module, mesh=self._mesh, mp_policy=policy, offload_policy=offload)
        return [type(block).__name__.removeprefix("FSDP") for block in blocks.values()]

    def reduction(self) -> MixedPrecisionPolicy:
        """Return the format in which gradients are added up; forward passes have autocast."""
        dtype = self._precision.param_dtype
        # A sum over many ranks in 16 bits loses the small gradients.
        wide = torch.float32 if dtype.itemsize < torch.float32.itemsize else None
        return MixedPrecisionPolicy(reduce_dtype=wide, cast_forward_inputs=False)

    @override
    def optimizer_target(self) -> OptimizerTarget:
        locals_by_name = {name: local for _, local, name in self._pairs}
        plain = {p: locals_by_name[canonical_name(n)] for n, p in self._plain.named_parameters()}
        device_type = "cpu" if self._option.offload else self.device.type
        return OptimizerTarget(with_parameters(self._plain, plain), device_type, self._sharding)

    @override
    def accumulation_context(self, *, last: bool) -> AbstractContextManager[object]:
        root = self.wrapped
        assert isinstance(root, FSDPModule)  # noqa: S101 - made by wrap_module
        root.set_is_last_backward(last)
        root.set_requires_gradient_sync(last or self._option.reduce_every_micro_batch)
        root.set_requires_all_reduce(last)
        root.set_reshard_after_backward(last or self._option.reshard_after_forward)
        return contextlib.nullcontext()

    @override
    def forward_backward(self, window: Window) -> Tensor:
        loss = super().forward_backward(window)
        for param, local, _ in self._pairs:
            local.grad = None if param.grad is None else _local(param.grad)
            param.grad = None
        return loss

    @override
    def end_evaluation(self) -> None:
        # The parameters of the last group are kept after a forward pass, and with
        # reshard_after_forward=false all are: the next pass must not see them.
        for part in _fsdp_modules(self.module):
            part.reshard()

    @override
    def parameter_names(self) -> dict[Tensor, str]:
        return {local: name for _, local, name in self._pairs}

    @override
    def model_tensors(self) -> Mapping[str, Tensor | LocalShard]:
        return {name: self._live.get(name, t) for name, t in named_tensors(self.module).items()}

    @override
    @contextlib.contextmanager
    def whole_module(self) -> Iterator[nn.Module | None]:
        """Gather the weights on rank 0, in its host's memory: no device may have room for them."""
        is_first = self.world.rank == 0
        wholes: dict[str, nn.Parameter] = {}
        for _, local, name in self._pairs:
            whole = self._gathered(local, self._sharding.shard_of(local))
            if is_first:
                wholes[name] = nn.Parameter(whole.cpu(), requires_grad=local.requires_grad)
        if not is_first:
            yield None
            return
        plain = {p: wholes[canonical_name(n)] for n, p in self._plain.named_parameters()}
        module = with_parameters(self._plain, plain)
        live = dict(self.module.named_buffers())
        for name, _ in list(module.named_buffers()):
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, live[name].cpu())
        yield module.eval()

    def _describe(self, module: nn.Module) -> None:
        """Make a plain parameter of every shard, and note what it is a part of."""
        layout = self.world.layout
        rank, ranks = layout.coordinates(self.world.rank)["dp_shard"], layout.dp_shard
        self._pairs: list[tuple[nn.Parameter, nn.Parameter, str]] = []
        shards: dict[Tensor, Shard] = {}
        for full_name, param in module.named_parameters():
            name = canonical_name(full_name)
            local = nn.Parameter(_local(param.detach()), requires_grad=param.requires_grad)
            start, stop = row_range(len(param), rank, ranks)
            shards[local] = Shard.slice_of(name, param.shape, 0, start, stop)
            self._pairs.append((param, local, name))
        self._sharding = self.gradient_sharding = GroupSharding(
            self._mesh.get_group("dp_shard"), shards, self.device
        )
        self._live = {n: LocalShard(p.detach(), shards[p]) for _, p, n in self._pairs}

    def _gathered(self, local: Tensor, shard: Shard) -> Tensor:
        """Return a whole parameter, on the device of the collectives."""
        ranks = self.world.layout.dp_shard
        rows, _ = row_range(shard.shape[0], 1, ranks)
        padded = local.new_zeros((rows, *shard.shape[1:]), device=self.device)
        padded[: len(local)] = local.detach()
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(parts, padded, group=self._mesh.get_group("dp_shard"))
        return torch.cat(parts)[: shard.shape[0]]


def _mesh(parts: EngineParts) -> DeviceMesh:
    layout = parts.world.layout
    device_type = torch.device(parts.world.device).type
    if layout.dp_replicate == 1:
        return init_device_mesh(device_type, (layout.dp_shard,), mesh_dim_names=("dp_shard",))
    sizes = (layout.dp_replicate, layout.dp_shard)
    return init_device_mesh(device_type, sizes, mesh_dim_names=("dp_replicate", "dp_shard"))


def _check_dims(module: nn.Module) -> None:
    for name, param in module.named_parameters():
        if not param.dim():
            raise ConfigError(
                [
                    Problem(
                        "parallelism.kind",
                        f"fsdp shards along the first dim, but {canonical_name(name)} is a scalar; "
                        "choose parallelism=ddp",
                    )
                ]
            )


def _buffers(module: nn.Module) -> dict[str, LocalShard]:
    return {
        canonical_name(name): LocalShard(buffer, Shard.whole(name, buffer.shape))
        for name, buffer in module.named_buffers(remove_duplicate=False)
    }


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.to(device))


def _fsdp_modules(module: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def _on_meta(param: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)  # noqa: S101 - made by fully_shard
    return tensor.to_local()
