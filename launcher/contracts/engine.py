"""Interface between the training loop and engines, and the mesh of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, Protocol

from launcher.contracts.sharding import LocalShard

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.contracts.adapter import Adapted
    from launcher.contracts.data import BatchPlan, MicroBatch, Window
    from launcher.contracts.group_options import PrecisionOption
    from launcher.contracts.module_options import EmaOption
    from launcher.contracts.optimizer import OptimizerOption
    from launcher.contracts.task import Task

    Predict = Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]]


AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Mesh axes, slowest first: neighbouring ranks differ in `tp`, which communicates most."""
DATA_AXES = ("dp_replicate", "dp_shard")
"""Axes along which ranks read different data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes of the mesh axes.

    Attributes:
        pp: Pipeline stages.
        dp_replicate: Data-parallel groups that each hold full parameters.
        dp_shard: Data-parallel ranks that share the parameters of one group.
        cp: Ranks that share the positions of a sequence.
        tp: Ranks that share the matrices of a layer.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def ranks(self) -> int:
        """Number of ranks in the mesh."""
        return math.prod(asdict(self).values())

    @property
    def data_ranks(self) -> int:
        """Number of ranks that read different data."""
        return self.dp_replicate * self.dp_shard

    @property
    def is_sharded(self) -> bool:
        """True if ranks share parameters, or an optimizer's state over them."""
        return self.dp_shard * self.tp > 1

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return a rank's index on every axis."""
        # The last axis varies fastest, as in torch's init_device_mesh: both must agree on which
        # ranks form a tensor-parallel group.
        found: dict[str, int] = {}
        for axis, size in reversed(asdict(self).items()):
            rank, found[axis] = divmod(rank, size)
        return found

    def data_rank(self, rank: int) -> int:
        """Return the share of the data that a rank reads, from 0 to data_ranks - 1."""
        place = self.coordinates(rank)
        return place["dp_replicate"] * self.dp_shard + place["dp_shard"]

    def is_first_of(self, axis: str, rank: int) -> bool:
        """Return True on the ranks with index 0 on an axis."""
        return self.coordinates(rank)[axis] == 0


@dataclass(frozen=True, slots=True)
class World:
    """Rank, device and mesh of this process.

    Attributes:
        rank: From 0 to size - 1.
        size: Number of ranks.
        local_rank: Rank on this machine.
        device: What torch calls the device: `cpu`, `cuda:0`, `mps`.
        layout: The mesh that the ranks form.
    """

    rank: int
    size: int
    local_rank: int
    device: str
    layout: Layout = field(default_factory=Layout)

    @property
    def data_rank(self) -> int:
        """Share of the data that this rank reads."""
        return self.layout.data_rank(self.rank)

    @property
    def data_ranks(self) -> int:
        """Number of ranks that read different data."""
        return self.layout.data_ranks


class Request(Flag):
    """Request of one rank to all ranks, for the end of a step.

    A rank never acts on its own clock or signal. The engine sums the requests in the collective
    that each step needs anyway, and all ranks act on the union in the same step.
    """

    # Otherwise one rank saves while the others are in the next step, and the run hangs: a signal
    # arrives on each rank at another time, and clocks differ.

    NONE = 0
    SAVE = auto()
    STOP_SIGTERM = auto()
    STOP_SIGUSR1 = auto()
    STOP_SIGINT = auto()
    STOP_SIGHUP = auto()
    STOP_NONFINITE = auto()
    """End the run: this rank's weights are not finite."""
    CONTINUE = auto()
    """Take another step, where the end depends on what each rank measures."""


@dataclass(frozen=True, slots=True)
class Clipping:
    """Limits of the gradients, applied after unscaling and before the step; None for no limit.

    Attributes:
        max_norm: Limit of the 2-norm over all gradients.
        max_value: Limit of the absolute value of each gradient element.
        max_norm_per_parameter: Limit of the 2-norm of each parameter's gradient.
    """

    # Order: each parameter's norm, the norm of all, each element. So one exploding parameter is
    # clipped before it can shrink all others; as each limit only shrinks, all hold in the end.
    max_norm: float | None
    max_value: float | None
    max_norm_per_parameter: float | None = None


def _no_losses(outputs: Any) -> Mapping[str, Tensor]:
    del outputs
    return {}


class InitialWeights(Protocol):
    """Initial weights of a module on the meta device."""

    def fill(self, shards: Mapping[str, LocalShard]) -> None:
        """Fill local tensors with their parts of the weights, with memory for one module at a time.

        Args:
            shards: By name of the parameter or buffer; on any device, in any format.
        """

    def check(self, module: nn.Module) -> None:
        """Check what only a module with weights shows; each rank calls it.

        Args:
            module: What takes the place of the module in forward passes.

        Raises:
            DataError: The network cannot be trained for its task.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """Arguments of `ParallelismOption.build`."""

    module: nn.Module
    task: Task
    optimizer: OptimizerOption
    precision: PrecisionOption
    clipping: Clipping
    skip_nonfinite: bool
    world: World
    plan: BatchPlan
    requests: Callable[[], Request]
    weights: InitialWeights | None = None
    """Fills the shards of a module on the meta device; None for a module with memory."""
    adapter: Adapted | None = None
    """Changes of the module by an adapter; None if all of its weights are trained."""
    ema: EmaOption | None = None
    """Moving average of the weights; None for none."""
    auxiliary_losses: Callable[[Any], Mapping[str, Tensor]] = _no_losses
    """Losses that the module itself adds, by name, given the outputs of a forward pass: see
    `ModelOption.auxiliary_losses`."""


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """Result of one update.

    Attributes:
        grad_norm: 2-norm of all gradients before clipping. Shape (), float32, on the device.
        applied: False if the engine skipped the update because of a non-finite loss or norm.
        loss_scale: Factor that the loss was multiplied by; None where it is not scaled.
        requests: The union of all ranks' requests; the same on every rank.
        auxiliary_losses: The parts of the window's mean loss that the module added, by name.
            Shape () each, on the device.
    """

    # A tensor, and no float: reading it makes the host wait for the device, so the loop leaves
    # that to observers that are due.
    grad_norm: Tensor
    applied: bool
    loss_scale: float | None = None
    requests: Request = Request.NONE
    auxiliary_losses: Mapping[str, Tensor] = field(default_factory=dict)


EngineState = Mapping[str, "Tensor | LocalShard"]
"""Model and optimizer state, flat: `model.<parameter>`, `optimizer.<parameter>.<key>`,
`optimizer_group.<group>.<key>`, `precision.<key>`, `ema.<parameter>` and `ema_counter.<key>`. Plain
tensors are equal on all ranks; a LocalShard is this rank's part. A parameter that no update has
reached has no optimizer entries."""
# Tensors only, because anything else needs pickle, and loading a pickle executes code. By name and
# not by index, as torch's optimizers number them: engines and pipeline stages hold other subsets.


def param_of(entry: str, params: Collection[str]) -> str | None:
    """Return the parameter of an entry `optimizer.<parameter>.<key>`; None for any other entry."""
    parts = entry.split(".")
    if parts[0] != "optimizer":
        return None
    # Both the parameter and the key may contain dots: the shortest known name wins.
    names = (".".join(parts[1:end]) for end in range(2, len(parts)))
    return next((name for name in names if name in params), None)


class Engine(Protocol):
    """Owns module, optimizer, loss scaling and every collective."""

    # One method for forward and backward: DDP's `no_sync` must enclose the forward pass, a pipeline
    # schedule has no single backward pass, and DeepSpeed decides the accumulation boundary itself.
    def forward_backward(self, window: Window) -> Tensor:
        """Accumulate the gradient of the window's mean loss.

        Returns:
            The window's global mean loss, detached. Shape (), float32, on the device.
        """

    def update(self, lr: float | None) -> UpdateStats:
        """Unscale, check and clip the gradients, update the weights, and clear the gradients.

        Raises:
            NonFinite: Loss or gradient norm is not finite and `skip_nonfinite` is off. The weights
                are as before the window.
        """

    def evaluate(
        self, micro_batches: Iterable[MicroBatch], predict: Predict
    ) -> Iterator[Mapping[str, Tensor]]:
        """Yield predictions, without gradients and in evaluation mode.

        Args:
            micro_batches: This rank's share; as many on every rank (see `Samples.micro_batch`).
            predict: Reduces the module's outputs (`Task.predict`).

        Returns:
            The predictions of the samples of all data ranks in sample order, without padding.
            Exhaust the iterator on every rank: each prediction is a collective.
        """

    def agree(self, request: Request) -> Request:
        """Return the union of all ranks' requests outside a step; every rank must call it."""

    def full_module(self) -> AbstractContextManager[nn.Module | None]:
        """Yield the plain module with full weights, in evaluation mode, on rank 0; None elsewhere.

        Every rank must enter it, because the weights may have to be gathered. Training mode is
        restored on exit.
        """

    def state(self) -> EngineState:
        """Return the live tensors, which the next update changes.

        Before the first update it has all entries that a load may fill.
        """

    def load_state(self, state: EngineState) -> None:
        """Load what `state` returned, strictly.

        Raises:
            CheckpointError: Keys are missing, unexpected, or of another shape.
        """

    def close(self) -> None:
        """Release devices and process groups."""
