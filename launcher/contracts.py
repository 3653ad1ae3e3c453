"""The nouns that every room shares: what a kind of each group must offer, and what passes between them.

An *option* is a config group's validated value (`RunConfig.optimizer`): frozen, typed, with no default
values (YAML is their only home). Its `build` makes the live object; torch, transformers and the like are
imported inside `build`, so that this module, and every option class, loads without them.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from launcher.run_dir import RunDir
    from launcher.training.state import TrainState

GROUPS = (
    "model",
    "task",
    "data",
    "optimizer",
    "scheduler",
    "precision",
    "accumulation",
    "parallelism",
    "checkpoint",
    "logging",
    "launch",
)


# ---- options ---------------------------------------------------------------------------------------


class Settings(BaseModel):
    """A part of the config. Unknown keys are errors; values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Option(Settings, ABC):
    """A config group's value."""

    kind: str
    """Which module of the group's package this is."""

    def preflight(self) -> None:
        """Look at the world outside the config (files, folders) before anything starts.

        Called in the launching process by `trainctl run` and `trainctl check`; must not import torch and
        must not read more than it takes to find a mistake.

        Raises:
            TrainctlError: The run would fail; the message says why and what to do.
        """


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a network can take.

    Attributes:
        vocab_size: Rows of the embedding table: ids are below it.
        max_positions: Longest sequence that the network can see, in tokens; None where nothing bounds it.
    """

    vocab_size: int
    max_positions: int | None


class ModelOption(Option):
    """Which network is trained, and the tokenizer it goes with."""

    @abstractmethod
    def limits(self) -> ModelLimits:
        """What the network can take, known without building it.

        Raises:
            DataError: The file that says so cannot be read.
        """

    @abstractmethod
    def build(self) -> nn.Module:
        """The network on the CPU in float32, initialised from torch's global generator or loaded."""

    @abstractmethod
    def build_tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids the network was made for."""


class DataOption(Option):
    """Where the documents come from."""

    @abstractmethod
    def build(self) -> DataSplits:
        """Read the documents.

        Raises:
            DataError: A file is missing, empty or not what it should be.
        """


class TaskOption(Option):
    """What is learned from the documents: examples, loss, scores."""

    seq_len: int = Field(gt=0)
    """Longest example, in tokens."""

    @abstractmethod
    def build(self, tokenizer: Tokenizer) -> Task:
        """The task over one tokenizer."""


def _compiles(pattern: str) -> str:
    """A regular expression, or a ValueError that says why it is none."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""


class GroupOverride(Settings):
    """Other options for some parameters: `{pattern: embed, lr: 1.0e-3, betas: [0.9, 0.99]}`.

    Beside `pattern` it takes the optimizer's own `group_options`.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    pattern: Pattern
    """Which parameters."""

    @property
    def values(self) -> dict[str, JsonValue]:
        """The options that differ."""
        return self.__pydantic_extra__


class ParamGroups(Settings):
    """Which parameters the optimizer treats alike.

    A pattern is a regular expression that must match (`re.search`) at least one parameter's name; a
    shared parameter answers to each of its names.
    """

    no_decay_types: tuple[Literal["norm", "bias", "embedding", "vector"], ...]
    """The rule: what does not decay. `norm`: all parameters of normalisation layers; `bias`: biases
    of any layer; `embedding`: embedding tables; `vector`: parameters of fewer than two dims."""
    decay: tuple[Pattern, ...]
    """Patterns of parameters that decay although the rule, or `no_decay`, would spare them."""
    no_decay: tuple[Pattern, ...]
    """Patterns of parameters that do not decay although the rule would have them."""
    frozen: tuple[Pattern, ...]
    """Patterns of parameters that are not trained."""
    layer_decay: float | None = Field(gt=0, le=1)
    """Learning rate of each block over that of the block after it; None for the same rate
    everywhere."""
    overrides: tuple[GroupOverride, ...]
    """Other options for some parameters; where several match, the last one that names an option
    wins."""

    def freeze(self, module: nn.Module) -> None:
        """Switch off the gradients of what `frozen` names.

        To be called before the module is wrapped or sharded: wrappers look at `requires_grad` once.
        """
        for name, param in module.named_parameters(remove_duplicate=False):
            if any(re.search(pattern, name) for pattern in self.frozen):
                param.requires_grad_(False)


class OptimizerOption(Option):
    """How gradients become updates."""

    group_options: ClassVar[frozenset[str]] = frozenset({"lr", "lr_scale", "weight_decay"})
    """What may differ from group to group: fields, and `lr_scale`, a factor on `lr`."""
    owns_schedule: ClassVar[bool] = False
    """The optimizer finds its own learning rates: only a constant schedule, warm-up aside, fits
    it."""
    clips_itself: ClassVar[bool] = False
    """The optimizer limits its own updates: clipping the global gradient norm beside it changes its
    maths."""

    lr: float | None
    """Peak learning rate; the schedule scales it. None where the optimizer sets its own."""
    weight_decay: float = Field(ge=0)
    """Strength of the pull towards zero, in the groups that decay."""
    groups: ParamGroups
    """Parameter groups."""

    @property
    def peak_lr(self) -> float | None:
        """What a schedule scales; None where none may. It is `lr`, except where an optimizer that can
        set its own rate is put under a schedule without having been told one.
        """
        return self.lr

    @model_validator(mode="after")
    def _overrides_fit(self) -> Self:
        if self.groups.layer_decay is not None and (
            self.lr is None or "lr_scale" not in self.group_options
        ):
            raise ValueError("groups.layer_decay: this optimizer has one learning rate; use null")
        for place, override in enumerate(self.groups.overrides):
            try:
                self.overridden(override.values)
            except ValueError as error:
                raise ValueError(
                    f"groups.overrides[{place}] ({override.pattern}): {error}"
                ) from None
        return self

    def own_rate(self, step: int) -> float | None:
        """The learning rate that the optimizer sets itself at a step, the first of which is 0.

        None where it takes the schedule's.
        """
        del step

    def overridden(self, values: Mapping[str, JsonValue]) -> Self:
        """This option as a group with other options sees it, validated like the option itself.

        Args:
            values: By field; `lr_scale` multiplies the peak instead of replacing it.

        Raises:
            ValueError: A field is unknown, cannot differ by group, or its value does not fit.
        """
        if unknown := sorted(values.keys() - self.group_options):
            can = ", ".join(sorted(self.group_options))
            raise ValueError(f"{', '.join(unknown)}: cannot differ by group; what can: {can}")
        changed = dict(values)
        if changed.keys() & {"lr", "lr_scale"} and self.lr is None:
            raise ValueError("lr: the optimizer sets its own, so that a group cannot have another")
        scale = changed.pop("lr_scale", None)
        if scale is not None:
            if "lr" in changed or isinstance(scale, bool) or not isinstance(scale, int | float):
                raise ValueError("lr_scale: must be a number, and stand beside no lr")
            changed["lr"] = (self.lr or 0) * scale
        if "lr" in changed and changed["lr"] is None:
            raise ValueError("lr: must be a number")
        groups = self.groups.model_dump(mode="json") | {"overrides": []}
        whole = self.model_dump(mode="json") | changed | {"groups": groups}
        try:
            return type(self).model_validate_json(json.dumps(whole))
        except ValidationError as error:
            reasons = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError("; ".join(reasons)) from None

    @abstractmethod
    def build(self, module: nn.Module, device_type: str) -> torch.optim.Optimizer:
        """The optimizer over the module's trainable parameters.

        Each of its `param_groups` carries `lr_scale`: the group's learning rate over the peak. The
        engine sets `lr = schedule.lr(step) * lr_scale` before each step.

        An optimizer whose groups hold state of their own names the keys in an attribute
        `group_state`; one whose weights differ between training and evaluation has `train()` and
        `eval()`, which the engine calls around evaluation, saving and export.

        Raises:
            ConfigError: A pattern matches no parameter, or the device or an installed library does
                not offer what the option asks for.
        """


class SchedulerOption(Option):
    """How the learning rate moves over the run."""

    @property
    def watches(self) -> frozenset[str]:
        """Names of the validation scores that move the rate; empty where only the step does."""
        return frozenset()

    @abstractmethod
    def build(self, peak_lr: float | None, horizon: Horizon) -> Schedule:
        """The schedule as a pure function of the step.

        Raises:
            ValueError: A length does not fit the horizon.
        """


class PrecisionOption(Option):
    """Which number formats parameters, computation and reductions use."""

    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda", "mps"})
    """Kinds of device that can compute in these formats."""

    @abstractmethod
    def build(self, device_type: str) -> Precision:
        """The formats and contexts for one kind of device.

        Raises:
            LaunchError: This machine's device of that kind cannot compute in these formats.
        """


class AccumulationOption(Option):
    """How many samples make one optimizer step, and in how many pieces they pass through the device."""

    @abstractmethod
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        """The one truth about batch sizes.

        Raises:
            ValueError: The numbers contradict each other; the message gives the nearest that do not.
        """


class ParallelismOption(Option):
    """Which engine runs the model, over how many ranks."""

    @abstractmethod
    def build(self, parts: EngineParts) -> Engine:
        """The engine; it shards and moves the module, then builds the optimizer from what it became."""


class CheckpointOption(Option):
    """When and how the state of the run is saved."""

    every_steps: int | None = Field(gt=0)
    """Save after every so many optimizer steps; None for no such cadence."""
    every_minutes: float | None = Field(gt=0)
    """Save when so many minutes have passed since the last save; None for no such cadence."""
    export: bool
    """Leave the trained model in RUN_DIR/export as transformers loads it."""

    @abstractmethod
    def build(self, run_dir: RunDir, world: World) -> CheckpointStore:
        """The store of this run's checkpoints."""


class LoggingOption(Option):
    """Where the numbers of a run go."""

    def listen(self) -> None:
        """Show warnings from now on; called on rank 0 before anything is built."""

    @abstractmethod
    def build(self, context: LogContext) -> Sequence[Sink]:
        """The sinks of rank 0."""


class LaunchOption(Option):
    """Where the ranks run."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    """Where the ranks compute; `auto` takes CUDA, then MPS, then the CPU."""
    threads: int | None = Field(gt=0)
    """Threads of one CPU operation, per rank; null leaves the number to torch."""

    @property
    @abstractmethod
    def ranks(self) -> int:
        """Number of processes in the whole run."""

    @abstractmethod
    def command(self, run_dir: RunDir) -> Sequence[str]:
        """The program that starts the ranks on this machine and ends when they end."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """What the ranks' environment must hold beside ours."""


# ---- data and task ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and the name by which an error calls it (a path, or `path:line`)."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Documents to train on, and documents held out; no document is in both."""

    train: Sequence[Document]
    validation: Sequence[Document]


class Tokenizer(Protocol):
    """Text to ids and back."""

    eos_id: int
    vocab_size: int

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Ids of a text, without special tokens. Shape (T,)."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens are left out."""

    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        """Bytes of UTF-8 that some ids stand for; special tokens stand for none."""

    def save(self, folder: Path) -> None:
        """Write the files from which AutoTokenizer loads this tokenizer."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What passes through one device at once.

    Attributes:
        inputs: Tensors by name; the first dim of each is the batch. On the CPU until the engine moves them.
        num_targets: Target tokens (or samples) that the loss sums over.
        indices: The samples' places in the training set, for messages.
    """

    inputs: Mapping[str, Tensor]
    num_targets: int
    indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class Window:
    """What one optimizer step learns from, as one rank sees it.

    Attributes:
        micro_batches: This rank's share, in order.
        num_samples: Samples in the window over all ranks.
        num_targets: Target tokens in the window over all ranks: the divisor of every loss in it, so that
            any split into micro-batches and ranks gives the gradient of one big batch.
    """

    micro_batches: Sequence[MicroBatch]
    num_samples: int
    num_targets: int


class Samples(Protocol):
    """Examples by index; every method is a pure function of the indices."""

    fingerprint: str
    """Hash of the examples: a resumed run must see the same."""

    def __len__(self) -> int:
        """Number of examples."""

    def num_targets(self, indices: Sequence[int]) -> int:
        """Target tokens of some examples, known without building them."""

    def micro_batch(self, indices: Sequence[int]) -> MicroBatch:
        """The examples as tensors."""

    def describe(self, index: int) -> str:
        """Where an example comes from, for messages: file and place in it."""


class Task(Protocol):
    """The live task: its examples, its loss, its scores."""

    def samples(self, documents: Sequence[Document]) -> Samples:
        """The examples in some documents.

        Raises:
            DataError: There is not one example in them.
        """

    def loss(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Sum of the losses of all targets. Shape (), float32, on the module's device."""

    def scores(self, loss_sum: float, num_targets: int, samples: Samples) -> dict[str, float]:
        """Validation scores (`eval_loss`, …) from the summed loss over `num_targets` held-out targets."""

    def references(self, documents: Sequence[Document]) -> Mapping[str, float]:
        """Named figures that put the scores on some held-out documents in perspective; may be empty."""

    def sample(self, module: nn.Module) -> str | None:
        """A taste of what the model has learned, for the console; None when the task has none."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write model and tokenizer as transformers loads them."""


# ---- schedule, precision, batch --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Horizon:
    """The run's length, from which a schedule resolves lengths given in other units.

    Attributes:
        max_steps: Optimizer steps of the whole run.
        samples_per_step: Samples in one optimizer step, over all ranks.
        tokens_per_step: Tokens in one optimizer step, over all ranks.
        steps_per_epoch: Optimizer steps that see every sample once; need not be whole.
    """

    max_steps: int
    samples_per_step: int
    tokens_per_step: int
    steps_per_epoch: float


class Schedule(ABC):
    """The learning rate as a function of the step; what it must remember is an explicit value."""

    @abstractmethod
    def lr(self, step: int, memory: Mapping[str, float]) -> float | None:
        """The learning rate of optimizer step `step` (the first is 0); None: the optimizer's own."""

    def observe(
        self, memory: Mapping[str, float], scores: Mapping[str, float], step: int
    ) -> Mapping[str, float]:
        """The memory after the evaluation that followed `step` steps. Most schedules remember nothing."""
        del scores, step
        return memory


class LossScale(Protocol):
    """A factor on the loss that keeps small gradients from vanishing in a format of little range."""

    value: float
    """The factor now: a power of two, so that scaling and unscaling round nothing."""

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""

    def unscale(self, grads: Sequence[Tensor]) -> Tensor:
        """Divide gradients by the factor, in place.

        Returns:
            1 if a gradient was not finite, else 0: of this rank's gradients only. Shape (), float32, on
            the gradients' device.
        """

    def update(self, *, overflowed: bool) -> None:
        """Move the factor after an update, applied or, because a gradient overflowed, skipped.

        Raises:
            NonFinite: The gradients overflow however small the factor is.
        """


class Precision(ABC):
    """Number formats on one kind of device.

    What an engine does with it: `prepare` the module before it is moved, wrapped or sharded; let
    `build_optimizer` build the optimizer; run forward passes in `autocast()`, those of an evaluation in
    `evaluation(module)`; save `state()` with its own as `precision.<key>`.
    """

    loss_scale: LossScale | None = None
    """None where gradients have range enough."""

    @property
    @abstractmethod
    def param_dtype(self) -> torch.dtype:
        """Format of the parameters that the optimizer updates."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""

    def prepare(self, module: nn.Module) -> None:
        """Give the module its formats, in place.

        Buffers keep theirs: rounded positions or running statistics would gain nothing and lose much.
        """
        for param in module.parameters():
            if param.is_floating_point():
                param.data = param.data.to(self.param_dtype)

    def evaluation(self, module: nn.Module) -> AbstractContextManager[Any]:
        """The context in which forward passes of an evaluation run, without gradients."""
        del module
        return self.autocast()

    def build_optimizer(
        self, option: OptimizerOption, module: nn.Module, device_type: str
    ) -> torch.optim.Optimizer:
        """The optimizer over the module's parameters, stepping them as the format demands."""
        return option.build(module, device_type)

    def state(self) -> Mapping[str, Tensor]:
        """What a resumed run needs to go on bit for bit; tensors on the CPU, by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. A name that is missing or unknown is a KeyError."""
        if state:
            raise KeyError(*state)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batch equation: samples_per_step = micro_batch_size × micro_batches × ranks.

    Attributes:
        micro_batch_size: Samples that pass through one device at once.
        micro_batches: Micro-batches per rank in one optimizer step.
        ranks: Processes that each take their own samples.
        seq_len: Tokens in one sample.
    """

    micro_batch_size: int
    micro_batches: int
    ranks: int
    seq_len: int

    @property
    def samples_per_step(self) -> int:
        """Global batch, in samples."""
        return self.micro_batch_size * self.micro_batches * self.ranks

    @property
    def tokens_per_step(self) -> int:
        """Global batch, in tokens."""
        return self.samples_per_step * self.seq_len

    def __str__(self) -> str:
        return (
            f"{self.samples_per_step:,} samples ({self.tokens_per_step:,} tokens) per step = "
            f"micro-batch {self.micro_batch_size} × accumulation {self.micro_batches} "
            f"× ranks {self.ranks}"
        )


# ---- the engine ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the ranks.

    Attributes:
        rank: From 0 to size - 1.
        size: Number of ranks.
        local_rank: Rank on this machine.
        device: What torch calls the device: `cpu`, `cuda:0`, `mps`.
    """

    rank: int
    size: int
    local_rank: int
    device: str


@dataclass(frozen=True, slots=True)
class Clipping:
    """How gradients are limited before the step, after unscaling. None switches a limit off.

    The order: each parameter's norm, then the norm of all that this leaves, then each element. So
    one parameter that explodes is brought down before it can shrink all others; and as each limit
    only shrinks, all of them hold in the end.

    Attributes:
        max_norm: Limit of the 2-norm over all gradients.
        max_value: Limit of the absolute value of each gradient element.
        max_norm_per_parameter: Limit of the 2-norm of each parameter's gradient.
    """

    max_norm: float | None
    max_value: float | None
    max_norm_per_parameter: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """What an engine is made from."""

    module: nn.Module
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    optimizer: OptimizerOption
    precision: PrecisionOption
    clipping: Clipping
    skip_nonfinite: bool
    world: World


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did.

    Attributes:
        grad_norm: 2-norm of all gradients before clipping. Shape (), float32, on the device.
        applied: False when a non-finite loss or norm made the engine leave the weights alone.
        loss_scale: The factor that the loss was scaled with; None where it is not scaled.
    """

    grad_norm: Tensor
    applied: bool
    loss_scale: float | None = None


EngineState = dict[str, "Tensor"]
"""Model and optimizer state, flat: `model.<parameter>` and `optimizer.<parameter>.<key>`; tensors only, so
that nothing needs pickle; named by parameter, so that any engine can load what another saved."""


class Engine(Protocol):
    """Owns module, optimizer, loss scaling and every collective."""

    def forward_backward(self, window: Window) -> Tensor:
        """Accumulate the gradient of the window's mean loss.

        Returns:
            The window's global mean loss, detached. Shape (), float32, on the device.
        """

    def update(self, lr: float | None) -> UpdateStats:
        """Unscale, check, clip, step, and clear the gradients.

        Raises:
            NonFinite: Loss or gradient norm is not finite and `skip_nonfinite` is off. The weights are as
                before the window.
        """

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> float:
        """Summed loss of this rank's micro-batches over all ranks, without gradient."""

    def module(self) -> nn.Module:
        """The plain module with whole weights, in evaluation mode; gathered where it is sharded."""

    def state(self) -> EngineState:
        """The live tensors; they change with the next update."""

    def load_state(self, state: EngineState) -> None:
        """Take over what `state` gave, strictly.

        Raises:
            CheckpointError: Keys are missing, left over, or of another shape.
        """

    def close(self) -> None:
        """Give back devices and process groups."""


# ---- observers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepReport:
    """What an observer learns after each step. Tensors stay on the device until an observer reads them.

    Attributes:
        state: The run after the step.
        window: What the step learned from.
        loss: Mean loss of the window. Shape (), on the device.
        update: What the update did.
        lr: Learning rate of the step.
        scores: Validation scores, when this step was evaluated.
    """

    state: TrainState
    window: Window
    loss: Tensor
    update: UpdateStats
    lr: float | None
    scores: Mapping[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Sees every step; raises to end the run."""

    def __call__(self, report: StepReport) -> None:
        """One step is done."""

    def close(self) -> None:
        """The run has ended, well or badly."""


Row = Mapping[str, float | int | None]
"""One logged step: `step`, `loss`, `lr`, `grad_norm`, `tokens_per_s`, …; None is a number that there is not."""


class Sink(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None:
        """One logged step; on disk, for a killed process, when this returns."""

    def close(self) -> None:
        """No more rows."""


@dataclass(frozen=True, slots=True)
class LogContext:
    """What a sink may want to know.

    Attributes:
        run_dir: Where files go.
        start_step: The step that a resumed run starts from: what later rows a killed predecessor wrote
            is void.
        max_steps: The step at which the run ends.
        summary: The header: what is said once at the start, (label, text) in order.
    """

    run_dir: RunDir
    start_step: int
    max_steps: int
    summary: Sequence[tuple[str, str]]


# ---- checkpoints -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole state of a run between two steps.

    Attributes:
        step: Optimizer steps done.
        engine: Model and optimizer.
        train_state: `TrainState` as JSON values.
        rng: Every rank-local generator's state by name, uint8 tensors of shape (n,).
        config: The text of config.json.
        data_fingerprint: Hash of the training examples.
    """

    step: int
    engine: EngineState
    train_state: Mapping[str, Any]
    rng: Mapping[str, Tensor]
    config: str
    data_fingerprint: str


class CheckpointStore(Protocol):
    """The checkpoints of one run: published whole or not at all, verified before they are used."""

    def save(self, snapshot: Snapshot) -> None:
        """Start saving; returns when the live tensors may change again.

        Raises:
            CheckpointError: This save, or the one before it that was still being written, failed.
        """

    def poll(self) -> None:
        """Raise what a save in the background failed with, if it did."""

    def wait(self) -> None:
        """Wait, for a bounded time, until the last save is published."""

    def load(self, engine: EngineState) -> Snapshot | None:
        """The newest checkpoint that verifies, or None when the run has none.

        Args:
            engine: Live state that tells names, shapes and dtypes; it is not written to.

        Raises:
            CheckpointError: There are checkpoints but none is fit, or the newest fit one does not match.
        """

    def close(self) -> None:
        """Wait for the writer and let go."""
