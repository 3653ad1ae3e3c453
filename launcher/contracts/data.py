"""Documents, samples, micro-batches, windows, and the task that makes sense of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn


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
class BatchPlan:
    """The batch equation: samples_per_step = micro_batch_size × micro_batches × ranks.

    Attributes:
        micro_batch_size: Samples that pass through one device at once.
        micro_batches: Micro-batches per rank in one optimizer step.
        ranks: Ranks that read different data.
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

    @override
    def __str__(self) -> str:
        return (
            f"{self.samples_per_step:,} samples ({self.tokens_per_step:,} tokens) per step = "
            f"micro-batch {self.micro_batch_size} × accumulation {self.micro_batches} "
            f"× ranks {self.ranks}"
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What passes through one device at once.

    Attributes:
        inputs: Tensors by name; the first dim of each is the batch. On the CPU until the engine
            moves them.
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
        num_targets: Target tokens in the window over all ranks: the divisor of every loss in it, so
            that any split into micro-batches and ranks gives the gradient of one big batch.
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
        """Validation scores (`eval_loss`, …) from the summed loss over some held-out targets."""

    def references(self, documents: Sequence[Document]) -> Mapping[str, float]:
        """Named figures that put scores on held-out documents in perspective; may be empty."""

    def sample(self, module: nn.Module) -> str | None:
        """A taste of what the model has learned, for the console; None when the task has none."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write model and tokenizer as transformers loads them."""
