"""Base class of the options of each group; that of the optimizers is in `optimizer`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from pydantic import Field
from typing_extensions import override

from launcher.contracts.observers import LogContext
from launcher.contracts.options import DEVICES, DeviceOption, DType, Option
from launcher.contracts.task import HeadName
from launcher.errors import DataError, Problem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.contracts.checkpoints import CheckpointStore
    from launcher.contracts.config import ConfigView
    from launcher.contracts.data import BatchPlan, DataSplits, Tokenizer
    from launcher.contracts.engine import Engine, EngineParts, Layout, World
    from launcher.contracts.observers import Observer, RunContext, Sink
    from launcher.contracts.precision import Precision
    from launcher.contracts.schedule import Horizon, Schedule
    from launcher.contracts.task import Head, Task
    from launcher.run_dir import RunDir


class MicroBatchSearch(Protocol):
    """Search for a micro-batch size, which the launcher does before the run."""

    @property
    def memory_limit_gib(self) -> float | None:
        """Memory that each rank may use, in GiB; None: what is free when the run starts."""

    @property
    def memory_margin(self) -> float:
        """Share of that memory to leave free, from 0 to below 1."""

    def candidates(self, *, seq_len: int, ranks: int) -> Sequence[int]:
        """Return the micro-batch sizes to try, the smallest first; always 1 at least.

        Args:
            seq_len: Tokens in one sample.
            ranks: Ranks that read different data.

        Raises:
            ValueError: The ranks cannot share the global batch evenly.
        """

    def at_most(self, micro_batch_size: int) -> AccumulationOption:
        """Return the option of a trial: still a search, with this size as its upper bound."""

    def decided(self, micro_batch_size: int) -> AccumulationOption:
        """Return the option of the run that follows, with the size given and nothing to search."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits of a network.

    Attributes:
        vocab_size: Rows of the embedding table: ids are below it.
        max_positions: Longest sequence that the network can see, in tokens; None where nothing
            bounds it.
    """

    vocab_size: int
    max_positions: int | None


class ModelOption(Option):
    """The network, and its tokenizer."""

    heads: ClassVar[Collection[HeadName]] = get_args(HeadName)
    """Heads that the network supports, independent of field values."""

    @property
    def has_pretrained_weights(self) -> bool:
        """True if training starts from pretrained weights."""
        return False

    @property
    def approximate_size(self) -> int | None:
        """Number of parameters, roughly, known without building the network; None where it is not.

        Learning rates that were tuned on a model of another size get a warning.
        """
        return None

    @abstractmethod
    def limits(self) -> ModelLimits:
        """Limits of the network, without building it.

        Raises:
            DataError: The file with the limits cannot be read.
        """

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        if config.task.head not in self.heads:
            yield Problem(
                "task",
                f"needs a {config.task.head} head, but model={self.kind} has only "
                f"{', '.join(self.heads)}; choose another task or model",
            )
        try:
            positions = self.limits().max_positions
        except DataError:
            return  # preflight reports it
        seq_len = config.task.seq_len
        if positions is not None and seq_len > positions:
            yield Problem(
                "task.seq_len",
                f"must be at most {positions}, the positions that the model has, but is {seq_len}; "
                f"write task.seq_len={positions} or choose a model with more positions",
            )

    @abstractmethod
    def build(self, head: Head, device: str) -> nn.Module:
        """Build the network in float32, in training mode.

        Tensors with memory are final: a file gave them. Those on the meta device are allocated and
        drawn afterwards, each from (seed, name), by the `_init_weights` of a transformers model or
        the `reset_parameters` of their modules. So a network without files is best built on the
        meta device, whatever `device` is.

        Args:
            head: Its output layer.
            device: Where loaded tensors are, as torch names it. `meta`: nothing is loaded, no
                memory is taken.

        Raises:
            DataError: The files do not hold such a network.
        """

    @abstractmethod
    def build_tokenizer(self) -> Tokenizer:
        """Build the tokenizer whose ids the network was made for."""

    def check_module(self, module: nn.Module, head: Head) -> None:
        """Check what only a network with weights shows; called once, on the CPU.

        Raises:
            DataError: It cannot be trained for the head's task.
        """
        del module, head

    def source_dtype(self) -> DType | None:
        """Return the number format of the weights that training starts from; None for new ones."""
        return None

    def auxiliary_losses(self, module: nn.Module, outputs: Any) -> Mapping[str, Tensor]:
        """Return the losses that the network itself adds to that of the task, by name.

        Each is a mean over the micro-batch, already weighted as it enters the loss. Over several
        micro-batches and ranks they are averaged by number of targets, as the task's loss is.

        Args:
            module: The network.
            outputs: What its forward pass returned.
        """
        del module, outputs
        return {}


class DataOption(Option):
    """The source of the raw records."""

    @abstractmethod
    def build(self) -> DataSplits:
        """Open the source and split it, the same way on every rank and every machine.

        Raises:
            DataError: A file is missing, empty or not what it should be.
        """


class TaskOption(Option):
    """The training task: samples, loss and metrics."""

    head: ClassVar[HeadName]
    """The output layer that the task needs."""
    score_names: ClassVar[frozenset[str] | None] = None
    """All scores that an evaluation may have; None if they depend on the data (names of labels)."""
    seq_len: int = Field(gt=0, le=2**24)
    """Longest example, in tokens."""

    @abstractmethod
    def build(self, tokenizer: Tokenizer) -> Task:
        """The task over one tokenizer."""


class SchedulerOption(Option):
    """The learning rate schedule."""

    is_constant: ClassVar[bool] = False
    """One learning rate for the whole run, apart from a warm-up."""
    uses_optimizer_lr: ClassVar[bool] = False
    """The learning rate is the one that the optimizer sets itself; the schedule only reports it."""

    @abstractmethod
    def build(self, peak_lr: float | None, horizon: Horizon) -> Schedule:
        """The schedule as a pure function of the step.

        Raises:
            ValueError: A length does not fit the horizon.
        """


class PrecisionOption(DeviceOption):
    """Number formats of parameters, computation and reductions."""

    def state_bytes(self, elements: int) -> Mapping[str, int]:
        """Return the bytes kept in addition to the optimizer's state, by purpose.

        Args:
            elements: Number of trained weights.
        """
        del elements
        return {}

    @abstractmethod
    def build(self, device_type: str) -> Precision:
        """The formats and contexts for one kind of device.

        Raises:
            LaunchError: This machine's device of that kind cannot compute in these formats.
        """


class AccumulationOption(Option):
    """Global batch size, and its division into micro-batches."""

    @property
    def search(self) -> MicroBatchSearch | None:
        """The search for a micro-batch size that the launcher must do before the run, if any."""
        return None

    @abstractmethod
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        """Return the batch equation.

        Args:
            seq_len: Tokens in one sample.
            ranks: Ranks that read different data.

        Raises:
            ValueError: The numbers contradict each other; the message gives the nearest that do
                not.
        """


class ParallelismOption(Option):
    """The engine, and its mesh of ranks."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        try:
            layout = self.layout(config.launch.ranks)
        except ValueError as error:
            yield Problem("parallelism.kind", str(error))
            return
        optimizer = config.optimizer
        if layout.is_sharded and (reason := optimizer.refuses_shards()):
            yield Problem(
                "optimizer.kind",
                f"{optimizer.kind} cannot update shards of parameters, as parallelism={self.kind} "
                f"makes them: {reason}; use parallelism=ddp, or an optimizer that can, such as "
                "adamw or adafactor",
            )

    @abstractmethod
    def layout(self, ranks: int) -> Layout:
        """Return the mesh that a number of ranks form; must not import torch.

        Raises:
            ValueError: This number of ranks forms no such mesh; the message names numbers that do.
        """

    @abstractmethod
    def build(self, parts: EngineParts) -> Engine:
        """The engine; it moves the module, then builds the optimizer from what it became."""


class ObserverOption(Option):
    """An observer of the steps, in addition to logging and checkpoints."""

    @abstractmethod
    @override
    def observers(self, context: RunContext) -> Sequence[Observer]: ...


class CheckpointOption(Option):
    """Checkpoints: interval and storage."""

    every_steps: int | None = Field(gt=0, le=10**12)
    """Optimizer steps between two checkpoints; null for no such interval."""
    every_minutes: float | None = Field(gt=0, le=1e6)
    """Minutes between two checkpoints; null for no such interval."""
    export: bool
    """Write the trained model to RUN_DIR/export, in the format of transformers."""
    export_dtype: Literal["source", DType]
    """Number format of the exported weights; `source` is the format of the initial weights: of the
    pretrained checkpoint, or for new weights the format in which they are trained."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        return found if self.export else {**found, "export_dtype": "export is false"}

    @property
    def copies_state(self) -> bool:
        """True where a save holds a copy of model and optimizer state in the host's memory."""
        return False

    @abstractmethod
    def build(self, run_dir: RunDir, world: World) -> CheckpointStore:
        """The store of this run's checkpoints."""

    def has_saved(self, run_dir: RunDir) -> bool:
        """Return whether a run has left a state that can be resumed, valid or not."""
        del run_dir
        return True

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        return [context.saver(self.every_steps)]


class LoggingOption(Option):
    """Outputs for metrics and messages."""

    def listen(self) -> None:
        """Show warnings from now on; called on rank 0 before anything is built."""

    @abstractmethod
    def build(self, context: LogContext) -> Sequence[Sink]:
        """The sinks of rank 0."""

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        if context.world.rank != 0:
            return ()
        log = LogContext(
            context.run_dir,
            context.logged_step,
            context.max_steps,
            context.summary,
            context.config,
        )
        return [context.recorder(self.build(log))]


class LaunchOption(Option):
    """Start of the ranks: their number and device."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    """Device of the ranks; `auto` takes CUDA, then MPS, then the CPU."""
    threads: int | None = Field(gt=0, le=1024)
    """Threads of one CPU operation, per rank; null uses the default of torch for one rank, and
    divides the cores among several ranks."""
    timeout_s: float = Field(gt=0, le=86_400)
    """Seconds that a rank may take for one optimizer step, one micro-batch of an evaluation or one
    collective; a run that takes longer hangs and is ended."""

    @property
    @abstractmethod
    def ranks(self) -> int:
        """Number of processes in the whole run."""

    def possible_devices(self) -> Sequence[str]:
        """Kinds of device that `device` may turn out to mean where the ranks run."""
        return DEVICES if self.device == "auto" else (self.device,)

    @abstractmethod
    def command(self, run_dir: RunDir) -> Sequence[str]:
        """The program that the launcher starts once for each of `rank_environments`."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Environment variables of every rank, in addition to those of the launcher."""

    def rank_environments(self) -> Sequence[Mapping[str, str]]:
        """Environment variables of each process that the launcher starts; RANK among them.

        By default one process without a rank of its own: a program that starts the ranks itself.
        """
        return ({},)
