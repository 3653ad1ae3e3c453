"""ZeRO through DeepSpeed, which reduces gradients and gathers weights and computes nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import (
    LocalShard,
    OptimizerTarget,
    Precision,
    Request,
    Shard,
    UpdateStats,
    canonical_name,
    named_tensors,
)
from launcher.parallelism._distributed_engine import DistributedEngine
from launcher.parallelism._local_parameters import GroupSharding, with_parameters
from launcher.parallelism._zero_partitions import (
    Handover,
    Partitions,
    ReplicatedParameters,
    ShardedParameters,
    import_deepspeed,
    leave_out_norm,
)

if TYPE_CHECKING:
    from launcher.contracts import EngineParts, Window
    from launcher.parallelism.zero import Zero


class ZeroEngine(DistributedEngine):
    """Train on ranks that each update one flat part of the weights."""

    def __init__(self, parts: EngineParts, option: Zero) -> None:
        self._option = option
        self._stats: UpdateStats | None = None
        self._error: BaseException | None = None
        group = dist.group.WORLD
        assert group is not None  # noqa: S101 - more than one rank
        super().__init__(parts, group)

    @override
    def wrap_module(self, module: nn.Module) -> nn.Module:
        self._params = {canonical_name(name): param for name, param in module.named_parameters()}
        self._locals = {
            name: nn.Parameter(param.detach().new_empty(0), requires_grad=param.requires_grad)
            for name, param in self._params.items()
        }
        self._skeleton = with_parameters(
            module, {param: self._locals[name] for name, param in self._params.items()}
        )
        trained = [param for param in self._params.values() if param.requires_grad]
        self.handover = Handover(trained)
        config = self._option.deepspeed_config(sum(param.numel() for param in trained))
        self._deepspeed, zero = self.initialize(InPrecision(module, self._precision), config)
        leave_out_norm(zero)
        kind = ShardedParameters if self._option.stage == 3 else ReplicatedParameters
        self._partitions: Partitions = kind(zero)
        self._take_parts()
        self._watch_gradients(trained)
        if self._option.stage == 3:
            self.evaluated = self._deepspeed.module
        wrapped: nn.Module = self._deepspeed
        return wrapped

    def initialize(self, module: nn.Module, config: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return DeepSpeed's engine, and its optimizer that steps `handover`."""
        deepspeed = import_deepspeed(self.device.type)
        engine, zero, *_ = deepspeed.initialize(
            model=module, optimizer=self.handover, config=config, dist_init_required=False
        )
        return engine, zero

    def _take_parts(self) -> None:
        """Let the local parameters share memory with what DeepSpeed keeps on this rank."""
        self._shards: dict[Tensor, Shard] = {}
        self._ranges: dict[nn.Parameter, slice] = {}
        # Not buffers, and in stages 1 and 2 not what is not trained: those are whole on every rank.
        self._split: set[str] = set()
        flat = self._partitions.flat.detach()
        for name, param in self._params.items():
            local = self._locals[name]
            if not param.requires_grad:
                part = self._partitions.frozen_part(param)
                if part is None:
                    local.data = param.detach()
                    self._shards[local] = Shard.whole(name, param.shape)
                    continue
                local.data, start = part
            else:
                offset, start, numel = self._partitions.range_of(param)
                self._ranges[local] = slice(offset, offset + numel)
                local.data = flat[self._ranges[local]]
            self._split.add(name)
            shape = self._partitions.shape_of(param)
            self._shards[local] = Shard.flat_range(name, shape, start, local.numel())

    @override
    def optimizer_target(self) -> OptimizerTarget:
        self.gradient_sharding = GroupSharding(self.group, self._shards)
        return OptimizerTarget(
            self._skeleton, self._partitions.flat.device.type, self.gradient_sharding
        )

    @override
    def parameter_names(self) -> dict[Tensor, str]:
        return {param: canonical_name(name) for name, param in self._skeleton.named_parameters()}

    @override
    def model_tensors(self) -> Mapping[str, Tensor | LocalShard]:
        return {
            name: self._held(name, tensor) for name, tensor in named_tensors(self.module).items()
        }

    def _held(self, name: str, tensor: Tensor) -> Tensor | LocalShard:
        if name not in self._split:
            return tensor
        local = self._locals[name]
        return LocalShard(local.detach(), self._shards[local])

    @override
    def whole_module(self) -> AbstractContextManager[nn.Module | None]:
        if self._option.stage != 3:
            return super().whole_module()
        return self._gathered_module()

    @contextlib.contextmanager
    def _gathered_module(self) -> Iterator[nn.Module | None]:
        # In the host's memory: the model may be larger than that of the device.
        found: dict[nn.Parameter, nn.Parameter] = {}
        for name, param in self._params.items():
            with self._partitions.gathered(param):
                if self.world.rank == 0:
                    whole = param.detach().to("cpu", copy=True)
                    found[self._locals[name]] = nn.Parameter(whole, param.requires_grad)
        if self.world.rank:
            yield None
            return
        yield with_parameters(self._skeleton, found).to("cpu").eval()

    @override
    def publish_weights(self) -> None:
        self._partitions.publish()

    @override
    def accumulation_context(self, *, last: bool) -> AbstractContextManager[object]:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    @override
    def backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    @override
    def forward_backward(self, window: Window) -> Tensor:
        self._has_gradient.fill_(False)
        # With one micro-batch there is none before the last, and none after the first.
        if is_accumulated := len(window.micro_batches) > 1:
            self._partitions.begin_window()
        loss = super().forward_backward(window)
        if is_accumulated:
            self._partitions.end_window()
        return loss

    @override
    def check_gradients(self) -> None:
        # On the CPU: reading it must not wait for the device.
        self._agreed = dist.all_reduce(
            self._has_gradient, op=dist.ReduceOp.MAX, group=self.group, async_op=True
        )

    @override
    def update(self, lr: float | None) -> UpdateStats:
        self.handover.update = lambda: self._update(lr)
        self._deepspeed.step()
        self.handover.update = None
        error, stats, self._error, self._stats = self._error, self._stats, None, None
        if error is not None:
            raise error
        if stats is None:
            raise RuntimeError("DeepSpeed skipped the update without asking its optimizer")
        return stats

    def _update(self, lr: float | None) -> None:
        """Update this rank's part of the weights; DeepSpeed has reduced the gradients."""
        flat = self._partitions.flat
        assert flat.grad is not None  # noqa: S101 - DeepSpeed sets it before each step
        # DeepSpeed averages over ranks. The loss is not multiplied instead: under fp16 that would
        # overflow earlier than in one process.
        flat.grad.mul_(self.world.size)
        for local, place in self._ranges.items():
            local.grad = flat.grad[place]
        try:
            self._stats = super().update(lr)
        except BaseException as error:  # noqa: BLE001 - raised again when DeepSpeed has finished
            self._error = error

    @override
    def check_finite(self, norm: Tensor) -> tuple[bool, Request]:
        self._agreed.wait()
        # DeepSpeed gives zeros to parameters that had no gradient; the optimizer would decay them.
        for local, used in zip(self._ranges, self._has_gradient.tolist(), strict=True):
            if not used:
                local.grad = None
        return super().check_finite(norm)

    @override
    def close(self) -> None:
        self.wrapped = self.module
        self._deepspeed.destroy()

    def _watch_gradients(self, params: list[nn.Parameter]) -> None:
        """Note which parameters take part in the loss; DeepSpeed does not say."""
        self._has_gradient = torch.zeros(len(params), dtype=torch.uint8)

        def watch(place: int, param: nn.Parameter) -> None:
            def note(_: Tensor) -> None:
                self._has_gradient[place] = 1

            param.register_hook(note)  # type: ignore[no-untyped-call]

        for place, param in enumerate(params):
            watch(place, param)


class InPrecision(nn.Module):
    """A module that computes in the formats of the run.

    DeepSpeed switches off an autocast that is on when its engine is called.
    """

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.module = module
        self._precision = precision

    @override
    def forward(self, **inputs: Any) -> Any:
        with self._precision.autocast():
            return self.module(**inputs)
