"""One step of the real model and task with shapes and no memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from launcher.config import derive
from launcher.contracts import Adapted, Head, OptimizerTarget, StateBytes
from launcher.optimizer import assign, state_bytes
from launcher.plan._live import LiveBytes

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.contracts import Task

# Records that are enough for one sample of the task's length.
_RECORDS = 64


@dataclass(frozen=True, slots=True)
class Network:
    """A config's network on the meta device, as the engine gets it."""

    module: nn.Module
    adapter: Adapted | None
    state: StateBytes
    parameters: int
    trained: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-batch needs in addition to the state.

    Attributes:
        first: Peak of forward and backward pass of the first micro-batch of a step, in which the
            gradients are made. Bytes.
        later: Peak of another one in the same step, the gradients included. Bytes.
        evaluation: Peak of a forward pass without gradients. Bytes.
        flops: Floating-point operations of forward and backward pass.
    """

    first: int
    later: int
    evaluation: int
    flops: int


def build_network(config: RunConfig) -> Network:
    """Build the network on the meta device and add up its state."""
    head = Head(config.task.head)
    module = config.model.build(head, "meta")
    adapter = config.adapter.adapt(module, head, config.seed)
    precision = config.precision.build("meta")
    optimizer = derive.optimizer(config)
    optimizer.groups.freeze(module)
    # Formats of 16 bits are stepped as float32, chunk by chunk; the others as they are.
    is_low = precision.param_dtype.itemsize < torch.float32.itemsize
    stepped = state_bytes(optimizer, module) if is_low else None
    # Not `precision.prepare`, which needs libraries that a rank on another machine has.
    for param in module.parameters():
        param.data = param.data.to(precision.param_dtype)
    if adapter is not None:
        adapter.prepare(module)
    state, trained = _state(config, module, adapter, stepped)
    # After the sizes: the optimizer is measured on the plain network.
    config.activation.apply(module)
    parameters = sum(param.numel() for param in module.parameters())
    return Network(module, adapter, state, parameters, trained)


def _state(
    config: RunConfig,
    module: nn.Module,
    adapter: Adapted | None,
    stepped: Mapping[str, int] | None,
) -> tuple[StateBytes, int]:
    from launcher.blocks import sharded_blocks
    from launcher.contracts import canonical_name

    special: Mapping[str, int] = {} if adapter is None else adapter.stored_bytes
    sizes = {
        param: special.get(canonical_name(name), _size(param))
        for name, param in module.named_parameters()
    }
    option = derive.optimizer(config)
    target = OptimizerTarget(module, "meta")
    trained = [assigned.param for assigned in assign(target, option)]
    elements = sum(param.numel() for param in trained)
    own = state_bytes(option, module) if stepped is None else stepped
    optimizer = {**own, **config.precision.state_bytes(elements)}
    for param in module.parameters():
        param.grad = None
    blocks = sharded_blocks(module, None, "parallelism.wrap").values()
    in_blocks = [sum(sizes[param] for param in block.parameters()) for block in blocks]
    weights = sum(sizes.values())
    state = StateBytes(
        weights=weights,
        trained=sum(map(_size, trained)),
        gradients=sum(map(_size, trained)),
        optimizer=optimizer,
        buffers=sum(map(_size, module.buffers())),
        block=max(in_blocks, default=0),
        others=weights - sum(in_blocks),
    )
    return state, elements


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def inputs_of(config: RunConfig) -> tuple[Task, Mapping[str, Tensor]]:
    """Return the task, and the inputs of its longest sample of a few, lengthened to seq_len."""
    from launcher.training.parts import read_data

    data = read_data(config, max_records=_RECORDS)
    longest = int(data.train.lengths.argmax())
    length, wanted = int(data.train.lengths[longest]), config.task.seq_len
    inputs = data.train.micro_batch([longest], 0).inputs
    return data.task, {
        name: value.new_zeros([1, wanted, *value.shape[2:]])
        if value.dim() > 1 and value.shape[1] == length
        else value
        for name, value in inputs.items()
    }


def measure(
    config: RunConfig, network: Network, task: Task, inputs: Mapping[str, Tensor], size: int
) -> Step:
    """Propagate shapes through forward and backward pass of a micro-batch.

    Args:
        config: The resolved config.
        network: Its network.
        task: Its task.
        inputs: Of one sample.
        size: Samples in the micro-batch.
    """
    with FakeTensorMode() as mode:
        module = _without_memory(network.module)
        task.prepare_module(module)
        batch = {
            name: torch.empty([size, *value.shape[1:]], dtype=value.dtype)
            for name, value in inputs.items()
        }
        del mode
        first = _peak(config, module, task, batch)
        # Apart from the first: the counter keeps tensors alive that are computed twice.
        with FlopCounterMode(display=False) as flops:
            _train_step(config, module, task, batch)
        later = _peak(config, module, task, batch)
        evaluation = _evaluation_peak(config, module, task, batch)
    return Step(first, later, evaluation, flops.get_total_flops())


def _peak(config: RunConfig, module: nn.Module, task: Task, batch: Mapping[str, Tensor]) -> int:
    """Return the peak of a micro-batch, and leave the gradients."""
    live = LiveBytes()
    for tensor in chain(module.parameters(), module.buffers(), batch.values()):
        live.ignore(tensor)
    held = 0
    for param in module.parameters():
        if param.grad is not None:
            live.ignore(param.grad)
            held += _size(param.grad)
    with live:
        _train_step(config, module, task, batch)
    return live.peak + held


def _train_step(
    config: RunConfig, module: nn.Module, task: Task, batch: Mapping[str, Tensor]
) -> None:
    with _autocast(config):
        outputs = module(**task.forward_inputs(batch))
        loss = task.loss(outputs, batch)
        for value in config.model.auxiliary_losses(module, outputs).values():
            loss = loss + value
    del outputs
    loss.backward()  # type: ignore[no-untyped-call]


def _evaluation_peak(
    config: RunConfig, module: nn.Module, task: Task, batch: Mapping[str, Tensor]
) -> int:
    live = LiveBytes()
    for tensor in chain(module.parameters(), module.buffers(), batch.values()):
        live.ignore(tensor)
    module.eval()
    with live, torch.no_grad(), _autocast(config):
        task.predict(module(**task.forward_inputs(batch)), batch)
    module.train()
    return live.peak


def _autocast(config: RunConfig) -> AbstractContextManager[Any]:
    dtype = config.precision.autocast_dtype
    if dtype is None:
        return nullcontext()
    return torch.autocast("cpu", dtype=getattr(torch, dtype))


def _without_memory(module: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device with tensors that only have a shape."""
    # Fake tensors, and not meta tensors: they choose the kernels of a device.
    import copy

    memo: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        if id(tensor) in memo:
            continue
        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
        is_param = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_param else empty
    return copy.deepcopy(module, memo)


def key_of(config: RunConfig) -> str:
    """Return a text that is equal for configs with the same network and passes."""
    groups = ("model", "task", "data", "adapter", "activation", "precision")
    return json.dumps({name: getattr(config, name).model_dump(mode="json") for name in groups})
