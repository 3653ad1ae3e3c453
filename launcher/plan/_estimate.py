"""Peak memory of each phase of a run, per rank, from the state and one measured step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from launcher.config import derive
from launcher.contracts import Placement

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.config.schema import RunConfig
    from launcher.contracts import BatchPlan, StateBytes, Task
    from launcher.plan._passes import Network, Step

# Share of the activations that an allocator of a GPU loses to fragmentation.
_FRAGMENTED = 0.05
# Context, kernels and libraries of a CUDA process.
_CONTEXT = 600 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a config needs, on the rank that needs most.

    Attributes:
        parameters, trained: Numbers of elements.
        state: Bytes of the whole model's state.
        placement: Bytes of the state on a rank.
        phases: Peak bytes on the device, by phase and part.
        micro_batch_size: Samples in a micro-batch.
        largest_micro_batch: The largest that fits the given memory; None without a memory or if not
            even one sample fits.
        host: Bytes in the host's memory.
        flops: Floating-point operations of an optimizer step over all ranks.
        tokens: Tokens of an optimizer step over all ranks.
        sent: Bytes that a rank sends in an optimizer step.
        checkpoint: Bytes of a checkpoint on disk.
        ranks: Number of ranks.
    """

    parameters: int
    trained: int
    state: StateBytes
    placement: Placement
    phases: Mapping[str, Mapping[str, int]]
    micro_batch_size: int
    largest_micro_batch: int | None
    host: int
    flops: int
    tokens: int
    sent: int
    checkpoint: int
    ranks: int

    @property
    def peak_phase(self) -> str:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        """The highest peak of all phases."""
        return sum(self.phases[self.peak_phase].values())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        parts = dict(self.phases[self.peak_phase])
        return {
            "parameters": self.parameters,
            "trained": self.trained,
            "ranks": self.ranks,
            "micro_batch_size": self.micro_batch_size,
            "largest_micro_batch_size": self.largest_micro_batch,
            "peak_bytes": {
                "per_rank": self.peak,
                "total": self.peak * self.ranks,
                "phase": self.peak_phase,
                "by_part": parts,
                "by_phase": {name: sum(each.values()) for name, each in self.phases.items()},
            },
            "host_bytes": self.host,
            "model_bytes": {
                "weights": self.state.weights,
                "gradients": self.state.gradients,
                "optimizer": dict(self.state.optimizer),
                "buffers": self.state.buffers,
            },
            "flops_per_step": self.flops,
            "tokens_per_step": self.tokens,
            "sent_bytes_per_step": self.sent,
            "checkpoint_bytes": self.checkpoint,
        }


class Planner:
    """Plans configs; those with the same network and task share the measured step."""

    def __init__(self) -> None:
        self._measured: dict[str, _Measured] = {}

    def plan(self, config: RunConfig, memory: int | None = None) -> Plan:
        """Plan a config.

        Args:
            config: The resolved config; its launch and parallelism give the ranks.
            memory: Bytes of a rank's device, for the largest micro-batch.

        Raises:
            TrainctlError: The network cannot be built, or no record can be read.
        """
        from launcher.plan._passes import key_of

        key = key_of(config)
        measured = self._measured.setdefault(key, _Measured(config))
        return _planned(config, measured, memory)


class _Measured:
    """The network of a config, and its steps by micro-batch size."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._steps: dict[int, Step] = {}

    @cached_property
    def network(self) -> Network:
        from launcher.plan._passes import build_network

        return build_network(self._config)

    @cached_property
    def _data(self) -> tuple[Task, Mapping[str, Tensor]]:
        from launcher.plan._passes import inputs_of

        return inputs_of(self._config)

    def state_of(self, config: RunConfig) -> StateBytes:
        """Return the state of a config that may have another optimizer."""
        from launcher.plan._passes import build_network

        same = config.optimizer == self._config.optimizer
        return (self.network if same else build_network(config)).state

    def step(self, size: int) -> Step:
        from launcher.plan._passes import measure

        if size not in self._steps:
            task, inputs = self._data
            self._steps[size] = measure(self._config, self.network, task, inputs, size)
        return self._steps[size]


def _planned(config: RunConfig, measured: _Measured, memory: int | None) -> Plan:
    batch = derive.batch_plan(config)
    ranks = config.launch.ranks
    network = measured.network
    state = measured.state_of(config)
    placement = config.parallelism.placement(state, ranks)
    size = batch.micro_batch_size
    step = measured.step(size)

    def phases_of(size: int) -> dict[str, dict[str, int]]:
        return _phases(config, batch, state, placement, measured.step(size))

    phases = phases_of(size)
    saved = _saved(network, state)
    largest = None
    if memory is not None:
        largest = _largest(phases_of, memory, batch.micro_batch_size * batch.micro_batches)
    samples = batch.samples_per_step
    return Plan(
        parameters=network.parameters,
        trained=network.trained,
        state=state,
        placement=placement,
        phases=phases,
        micro_batch_size=size,
        largest_micro_batch=largest,
        host=sum(placement.host.values()) + (saved if config.checkpoint.copies_state else 0),
        flops=step.flops * samples // size,
        tokens=batch.tokens_per_step,
        sent=placement.sent,
        checkpoint=saved,
        ranks=ranks,
    )


def _saved(network: Network, state: StateBytes) -> int:
    weights = state.weights if network.adapter is None else state.trained
    return weights + state.buffers + sum(state.optimizer.values())


def _phases(
    config: RunConfig, batch: BatchPlan, state: StateBytes, placement: Placement, step: Step
) -> dict[str, dict[str, int]]:
    resident = {
        "weights": placement.weights,
        "optimizer": placement.optimizer,
        "buffers": state.buffers,
    }
    on_gpu = config.launch.device != "cpu"
    if on_gpu:
        resident["context"] = _CONTEXT
    together = {**resident, "communication": placement.communication}
    # In a window of one micro-batch the gradients are made while activations are freed.
    is_whole = placement.gradients == state.gradients
    if batch.micro_batches == 1 and is_whole:
        gradients, activations = placement.gradients, max(0, step.first - state.gradients)
    else:
        gradients, activations = placement.gradients, step.later - state.gradients
    training = {**together, "gradients": gradients, "activations": activations}
    evaluation = {**together, "activations": step.evaluation}
    phases = {
        "build": {"weights": placement.weights, "buffers": state.buffers},
        "step": training,
        "evaluation": evaluation,
        "save": dict(resident),
    }
    if on_gpu:
        for phase in ("step", "evaluation"):
            phases[phase]["margin"] = int(_FRAGMENTED * phases[phase]["activations"])
    elif config.checkpoint.copies_state:
        phases["save"]["copy"] = placement.weights + placement.optimizer
    return phases


def _largest(
    phases_of: Callable[[int], Mapping[str, Mapping[str, int]]], memory: int, share: int
) -> int | None:
    """Return the largest micro-batch that fits, from two measured ones; None if none fits.

    Args:
        phases_of: Returns the peaks of a micro-batch by phase and part.
        memory: Bytes of a rank's device.
        share: A rank's samples of an optimizer step.
    """

    def peak(size: int) -> int:
        return max(sum(parts.values()) for parts in phases_of(size).values())

    one, two = peak(1), peak(2)
    if one > memory:
        return None
    # Activations grow with the samples, apart from what does not depend on them.
    if two <= one:
        return share
    return min(share, 1 + (memory - one) // (two - one))
