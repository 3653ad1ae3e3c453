"""Base classes of the options of most groups; models, optimizers, launchers have own modules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, get_args

from pydantic import Field
from typing_extensions import override

from launcher.contracts.memory import Placement
from launcher.contracts.observers import LogContext
from launcher.contracts.options import DeviceOption, DType, Option
from launcher.contracts.task import HeadName
from launcher.errors import Problem

if TYPE_CHECKING:
    from torch import nn

    from launcher.contracts.checkpoints import CheckpointStore
    from launcher.contracts.columns import Column
    from launcher.contracts.config import ConfigView
    from launcher.contracts.data import BatchPlan, DataSplits, Tokenizer
    from launcher.contracts.engine import Engine, EngineParts, Layout, World
    from launcher.contracts.memory import StateBytes
    from launcher.contracts.observers import Observer, RunContext, Sink
    from launcher.contracts.precision import Precision
    from launcher.contracts.schedule import Horizon, Schedule
    from launcher.contracts.task import Task
    from launcher.run_dir import RunDir


class MicroBatchSearch(Protocol):
    """Search for a micro-batch size before the run."""

    @property
    def memory_limit_gib(self) -> float | None:
        """Memory that each rank may use, in GiB; None: all that is free when the run starts."""

    @property
    def memory_margin(self) -> float:
        """Share of that memory to leave free, in [0, 1)."""

    def candidates(self, *, seq_len: int, ranks: int) -> Sequence[int]:
        """Return the micro-batch sizes to try, in ascending order, at least one.

        Args:
            seq_len: Tokens in one sample.
            ranks: Ranks that read different data.

        Raises:
            ValueError: The ranks cannot share the global batch evenly.
        """

    def at_most(self, micro_batch_size: int) -> AccumulationOption:
        """Return the option for a trial: still a search, with this size as upper bound."""

    def decided(self, micro_batch_size: int) -> AccumulationOption:
        """Return the option for the run: this size, and no search."""


class DataOption(Option):
    """The source of the raw records."""

    def peek(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the place and the columns of the first record of each file, without reading more.

        By default none: the columns are compared with the task's when the run starts.

        Raises:
            DataError: A file is missing, or its beginning is malformed.
        """
        yield from ()

    @abstractmethod
    def build(self) -> DataSplits:
        """Open the source and split it, in the same way on every rank and machine.

        Raises:
            DataError: A file is missing, empty or malformed.
        """


class TaskOption(Option):
    """Training task: samples, loss and metrics."""

    head: ClassVar[HeadName]
    """Output layer that the task needs."""
    score_names: ClassVar[frozenset[str] | None] = None
    """All scores of an evaluation; None if they depend on the data (names of labels)."""
    seq_len: int = Field(gt=0, le=2**24)
    """Longest example, in tokens."""

    def column_specs(self) -> Sequence[Column]:
        """Return the columns that the task reads; by default none are known before it is built."""
        return ()

    @property
    def loss_in_head(self) -> str | None:
        """Field with which the output layer computes the loss itself; None if it does not."""
        return None

    @abstractmethod
    def build(self, tokenizer: Tokenizer) -> Task:
        """Build the task for a tokenizer."""


class SchedulerOption(Option):
    """Learning rate schedule."""

    is_constant: ClassVar[bool] = False
    """One learning rate for the whole run, apart from a warm-up."""
    uses_optimizer_lr: ClassVar[bool] = False
    """The optimizer sets the learning rate itself; the schedule only reports it."""

    @abstractmethod
    def build(self, peak_lr: float | None, horizon: Horizon) -> Schedule:
        """Build the schedule.

        Raises:
            ValueError: A length does not fit the horizon.
        """


class PrecisionOption(DeviceOption):
    """Number formats of parameters, computation and reductions."""

    master_dtype: ClassVar[DType | Literal["float64"]] = "float32"
    """Format of the weights that the optimizer updates, as torch names it."""
    autocast_dtype: ClassVar[DType | None] = None
    """Format of matrix products under torch's autocast; None without autocast."""

    def state_bytes(self, elements: int) -> Mapping[str, int]:
        """Return the bytes kept in addition to the optimizer's state, by purpose.

        Args:
            elements: Number of trained weights.
        """
        del elements
        return {}

    def refuses_shards(self) -> str | None:
        """Return the reason why modules with sharded parameters are not supported, or None."""
        return None

    @abstractmethod
    def build(self, device_type: str) -> Precision:
        """Return the formats and contexts for one kind of device.

        Raises:
            LaunchError: This machine's device of that kind does not support these formats.
        """


class AccumulationOption(Option):
    """Global batch size, and its division into micro-batches."""

    @property
    def search(self) -> MicroBatchSearch | None:
        """Search for a micro-batch size that the launcher must do before the run, if any."""
        return None

    def resized(self, plan: BatchPlan, ranks: int) -> Self:
        """Return the option with the global batch of a plan on another number of data ranks.

        Raises:
            ValueError: The ranks cannot share the global batch evenly.
        """
        del plan, ranks
        return self

    @abstractmethod
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        """Return the batch equation.

        Args:
            seq_len: Tokens in one sample.
            ranks: Ranks that read different data.

        Raises:
            ValueError: The numbers contradict each other; the message has the nearest valid ones.
        """


class ParallelismOption(Option):
    """Engine and mesh of ranks."""

    @property
    def master_dtypes(self) -> Collection[str]:
        """Formats of the weights that the optimizer updates, as torch names them."""
        return {*get_args(DType), "float64"}

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        try:
            layout = self.layout(config.launch.ranks)
        except ValueError as error:
            yield Problem("parallelism.kind", str(error))
            return
        optimizer = config.optimizer
        # On shards a norm over "the tensor" is the norm of a part: wrong values, and no error.
        if layout.is_sharded and (reason := optimizer.refuses_shards()):
            yield Problem(
                "optimizer.kind",
                f"{optimizer.kind} cannot update shards of parameters, as parallelism={self.kind} "
                f"makes them: {reason}; use parallelism=ddp, or an optimizer that can, such as "
                "adamw or adafactor",
            )
        precision = config.precision
        if precision.master_dtype not in self.master_dtypes:
            yield Problem(
                "precision.kind",
                f"must keep weights in {', '.join(sorted(self.master_dtypes))} under "
                f"parallelism={self.kind}, but {precision.kind} keeps them in "
                f"{precision.master_dtype}; write precision=bf16 or parallelism=ddp",
            )

    @abstractmethod
    def layout(self, ranks: int) -> Layout:
        """Return the mesh of a number of ranks, without importing torch.

        Raises:
            ValueError: The mesh does not support this number; the message names numbers that work.
        """

    def placement(self, state: StateBytes, ranks: int) -> Placement:
        """Return where the state is kept and what is sent, by arithmetic."""
        # Whole on each rank, by default.
        del ranks
        return Placement(
            weights=state.weights,
            gradients=state.gradients,
            optimizer=sum(state.optimizer.values()),
        )

    def takes_meta_module(self, ranks: int) -> bool:
        """Return True if the engine takes a module on the meta device and fills its own shards."""
        del ranks
        return False

    def parameter_bytes(self, module: nn.Module, ranks: int) -> Sequence[int]:
        """Return the bytes of parameters that each rank keeps between steps, in order of ranks.

        Args:
            module: The network; may be on the meta device.
            ranks: Number of ranks.
        """
        return [sum(param.nbytes for param in module.parameters())] * ranks

    @abstractmethod
    def build(self, parts: EngineParts) -> Engine:
        """Build the engine, which moves (and shards) the module, and then builds the optimizer."""
        # In this order: optimizer state must be on the device of the parameters, and in the shape
        # of the shards.


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
        """True if a save keeps a copy of model and optimizer state in host memory."""
        return False

    @abstractmethod
    def build(self, run_dir: RunDir, world: World) -> CheckpointStore:
        """Build the store of this run's checkpoints."""

    def has_saved(self, run_dir: RunDir) -> bool:
        """Return True if a run has saved a state, valid or not."""
        del run_dir
        return True

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        # On every rank, because a save is collective. Only steps are given: minutes are requested
        # rank by rank, since the clocks of ranks differ.
        return [context.saver(self.every_steps)]


class LoggingOption(Option):
    """Outputs for metrics and messages."""

    def show_warnings(self) -> None:
        """Show warnings from now on; called on rank 0 before anything is built."""

    @abstractmethod
    def build(self, context: LogContext) -> Sequence[Sink]:
        """Build the sinks of rank 0."""

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        # Metrics are equal on all ranks: a second writer would interleave rows in one file.
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
