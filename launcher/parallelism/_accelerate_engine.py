"""The engines of several ranks, with a module that Hugging Face Accelerate has wrapped."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from launcher.errors import ConfigError, Problem
from launcher.parallelism._ddp_engine import DDPEngine
from launcher.parallelism._fsdp_engine import FSDPEngine
from launcher.parallelism._zero_engine import ZeroEngine
from launcher.parallelism._zero_partitions import import_deepspeed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from launcher.contracts import EngineParts, World
    from launcher.parallelism.ddp import DDP
    from launcher.parallelism.fsdp import FSDP

# Variables with which `accelerate launch` sets what trainctl's config decides.
_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")


class AccelerateDDPEngine(DDPEngine):
    """DistributedDataParallel, made by Accelerate."""

    def __init__(self, parts: EngineParts, option: DDP) -> None:
        self._options = {"find_unused_parameters": option.find_unused_parameters}
        super().__init__(parts, option)

    @override
    def distributed(self, module: nn.Module) -> DistributedDataParallel:
        from accelerate import DistributedDataParallelKwargs

        handlers = [DistributedDataParallelKwargs(**self._options)]
        self._accelerator = accelerator_of(
            self.world,
            "MULTI_",
            # It looks for GPUs first.
            lambda: {"kwargs_handlers": handlers, "cpu": self.device.type == "cpu"},
        )
        with accelerate_environment(self.world):
            wrapped = self._accelerator.prepare_model(module)
        assert isinstance(wrapped, DistributedDataParallel)  # noqa: S101 - for this distributed type
        # The base class shares buffers where evaluations and checkpoints see the result.
        wrapped.broadcast_buffers = False
        return wrapped

    @override
    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    @override
    def close(self) -> None:
        super().close()
        leave(self._accelerator)


class AccelerateFSDPEngine(FSDPEngine):
    """FSDP2, with the groups of parameters that Accelerate makes.

    Args:
        parts: See `EngineParts`.
        option: What the plugin is asked for.
        wrapping: Arguments of Accelerate's plugin that say which modules form a group.
    """

    def __init__(self, parts: EngineParts, option: FSDP, wrapping: Mapping[str, Any]) -> None:
        self._wrapping = wrapping
        super().__init__(parts, option)

    @override
    def shard(self, module: nn.Module) -> list[str]:
        self._accelerator = self.join()
        # Accelerate shards a model only with an optimizer; this one never steps.
        trained = [param for param in module.parameters() if param.requires_grad]
        with accelerate_environment(self.world):
            self._accelerator.prepare(module, torch.optim.SGD(trained, lr=0.0))
        blocks = [part for part in module.modules() if isinstance(part, FSDPModule)]
        if module not in blocks:
            raise refused(f"made {type(module).__name__} without sharding it")
        return [type(b).__name__.removeprefix("FSDP") for b in blocks if b is not module]

    def join(self) -> Accelerator:
        """Return Accelerate's object for this rank."""
        return accelerator_of(self.world, "FSDP", lambda: {"fsdp_plugin": self.fsdp_plugin()})

    def fsdp_plugin(self) -> Any:
        """Return Accelerate's plugin."""
        from accelerate import FullyShardedDataParallelPlugin

        return FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=self._option.reshard_after_forward,
            cpu_offload=self._option.offload,
            mixed_precision_policy=self.reduction(),
            # Each rank has drawn or read the same weights.
            cpu_ram_efficient_loading=False,
            activation_checkpointing=False,
            **self._wrapping,
        )

    @override
    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    @override
    def close(self) -> None:
        super().close()
        leave(self._accelerator)


class AccelerateZeroEngine(ZeroEngine):
    """DeepSpeed's engine, made by Accelerate.

    The backward pass is DeepSpeed's own: Accelerate's would also update the weights, before the
    training loop knows the learning rate of the step.
    """

    @override
    def initialize(self, module: nn.Module, config: Mapping[str, Any]) -> tuple[Any, Any]:
        import_deepspeed(self.device.type)
        from accelerate import DeepSpeedPlugin, InitProcessGroupKwargs

        # Without a GPU it would choose no backend, and take this rank for the only one.
        handlers = [InitProcessGroupKwargs(backend="gloo")] if self.device.type == "cpu" else []
        self._accelerator = accelerator_of(
            self.world,
            "DEEPSPEED",
            lambda: {
                "deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=dict(config)),
                "kwargs_handlers": handlers,
            },
        )
        with accelerate_environment(self.world):
            engine, wrapper = self._accelerator.prepare(module, self.handover)
        return engine, wrapper.optimizer

    @override
    def close(self) -> None:
        super().close()
        leave(self._accelerator)


def accelerator_of(
    world: World, distributed_type: str, arguments: Callable[[], Mapping[str, Any]]
) -> Accelerator:
    """Return Accelerate's object for this rank, over the process group that is there.

    Args:
        world: This rank.
        distributed_type: The type that is asked for, or how its name begins.
        arguments: Returns the arguments that differ by plugin.

    Raises:
        ConfigError: Accelerate has chosen another distributed type.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

    reset()
    with accelerate_environment(world):
        found = Accelerator(
            # Number formats and accumulation are the engine's.
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=TorchDynamoPlugin(backend="NO"),
            **arguments(),
        )
    chosen = str(found.distributed_type.value)
    if not chosen.startswith(distributed_type):
        raise refused(f"took distributed type {chosen} instead of {distributed_type}")
    if found.num_processes != world.size or found.device.type != world.device.partition(":")[0]:
        raise refused(f"took {found.num_processes} ranks on {found.device}")
    return found


@contextlib.contextmanager
def accelerate_environment(world: World) -> Iterator[None]:
    """Let Accelerate see this rank's place, and none of its own settings in the environment.

    What it changes in the environment and in torch's number of threads is restored.
    """
    before, threads = dict(os.environ), torch.get_num_threads()
    for name in before:
        if name.startswith(_PREFIXES):
            del os.environ[name]
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        # Otherwise Accelerate chooses the number of threads.
        OMP_NUM_THREADS=str(threads),
    )
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(world.size))
    try:
        with warnings.catch_warnings():
            # It calls functions that torch has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.set_num_threads(threads)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def leave(accelerator: Accelerator) -> None:
    """Release what Accelerate holds: the module, and its state of this process."""
    accelerator.free_memory()
    reset()


def reset() -> None:
    """Forget Accelerate's state of this process: an engine before this one may have set it."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - no public name
    GradientState._reset_state()  # noqa: SLF001 - likewise


def refused(what: str) -> ConfigError:
    """Return the error for a world that Accelerate has set up otherwise than asked."""
    return ConfigError(
        [
            Problem(
                "parallelism.kind",
                f"Accelerate {what}; choose parallelism=ddp, fsdp or zero2, which do the same "
                "without it",
            )
        ]
    )
