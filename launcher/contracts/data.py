"""Interfaces of records, samples, micro-batches and windows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


class Records(Protocol):
    """Raw examples by index, as a data source reads them."""

    columns: Sequence[str]
    """Names of the columns that every record has."""
    fingerprint: str
    """Hash of the content, in order."""
    class_names: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Names of the classes of columns that hold numbers of classes, where the source has names."""

    def __len__(self) -> int:
        """Number of records."""

    # Read on demand, not kept: the corpus may be larger than the memory.
    def record(self, index: int) -> Mapping[str, Any]:
        """Return one example: a value for each column."""

    def continues(self, index: int) -> bool:
        """Return True if the record continues the text of the previous record."""
        del index
        return False

    def describe(self, index: int) -> str:
        """Return the source of a record for messages: `file` or `file:line`."""


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Disjoint records for training, validation during the run, and a final test (may be None)."""

    train: Records
    validation: Records
    test: Records | None = None


class Tokenizer(Protocol):
    """Converts text to ids and back."""

    eos_id: int
    """The token that ends a text."""
    bos_id: int | None = None
    """The token that begins a text; None where there is none."""
    adds_bos: bool = False
    """True if the tokenizer puts `bos_id` in front of a text at inference."""
    vocab_size: int
    """Number of ids."""
    mask_id: int | None = None
    """The token in place of a masked one; None where there is none."""
    chat_template: str | None = None
    """Jinja template that renders messages; None where there is none."""

    @property
    def special_ids(self) -> Collection[int]:
        """Ids of special tokens, which are no text."""
        return {self.eos_id, self.pad_id}

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens as text, by name (`eos_token`), for chat templates."""
        return {}

    def encode_rendered(self, text: str) -> tuple[Sequence[int], Sequence[int]]:
        """Encode a rendered chat, in which special tokens are written out.

        Returns:
            The ids, and the position in the text at which each token begins.
        """
        ids = [self.encode(letter).tolist() for letter in text]
        starts = [at for at, each in enumerate(ids) for _ in each]
        return [token for each in ids for token in each], starts

    @property
    def pad_id(self) -> int:
        """The token that fills rows; `eos_id` where the tokenizer has none of its own."""
        return self.eos_id

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a text, without special tokens. Shape (T,)."""

    def encode_inputs(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> Mapping[str, Sequence[Sequence[int]]]:
        """Encode texts, or pairs of texts, with special tokens, as a pipeline of transformers does.

        Args:
            texts: The texts.
            pairs: The second text of each; None for texts alone.
            max_length: Most tokens; longer texts are truncated.

        Returns:
            `input_ids`, and `token_type_ids` if the tokenizer has them: a row for each text.
        """
        firsts = [self.encode(text).tolist() for text in texts]
        seconds = [self.encode(pair).tolist() for pair in pairs or []]
        end = [self.eos_id]
        if pairs is None:
            return {"input_ids": [row[: max_length - 1] + end for row in firsts]}
        half = (max_length - 2) // 2
        rows = []
        for first, second in zip(firsts, seconds, strict=True):
            # The longer one loses tokens first.
            kept = first[: max(half, max_length - 2 - len(second))]
            rows.append([*kept, *end, *second[: max_length - 2 - len(kept)], *end])
        return {"input_ids": rows}

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens."""

    # For bits per byte, the only loss that compares models with different tokenizers.
    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        """Return the number of UTF-8 bytes that some ids encode; special tokens encode none."""

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
        # With the full length, though samples may be shorter: the number is the same for all data.
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
    """Samples that pass through one device at once.

    Attributes:
        inputs: Tensors by name; the first dim of each is the batch. On the CPU until the engine
            moves them.
        num_targets: Target tokens (or samples) that the loss sums over.
        indices: The samples' indices in their set. Empty for padding: one row without targets.
    """

    inputs: Mapping[str, Tensor]
    num_targets: int
    indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class Window:
    """Data of one optimizer step, as one rank sees it.

    Attributes:
        micro_batches: This rank's share, in order.
        num_samples: Samples in the window over all ranks.
        num_targets: Target tokens in the window over all ranks: the divisor of every loss in it, so
            that any split into micro-batches and ranks gives the gradient of one big batch.
    """

    # A mean per micro-batch, averaged over micro-batches, would give the targets of a short
    # micro-batch more weight than those of a full one.
    micro_batches: Sequence[MicroBatch]
    num_samples: int
    num_targets: int


class Samples(Protocol):
    """Encoded examples by index."""

    fingerprint: str
    """Hash of the examples: a resumed run must see the same."""
    # All at once: `accumulation=auto` tries the longest samples, which must be found cheaply.
    lengths: npt.NDArray[np.int64]
    """Tokens (or other elements along dim 1 of the inputs) of every example. Shape (N,)."""

    def __len__(self) -> int:
        """Number of examples."""

    def num_targets(self, indices: Sequence[int]) -> int:
        """Number of targets of some examples, known without building them."""

    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        """Build some examples as tensors: a pure function of the arguments.

        Args:
            indices: The examples. An empty sequence gives one row without targets, whose loss and
                gradient are 0: padding, so that all ranks have as many micro-batches.
            draw: Seed of the random parts of an example (masks, noise), together with its index:
                `numpy.random.default_rng([draw, index])`. Not negative; derived from the seed of
                the run and the position in the data.
        """
        # Pure, because resuming, retrying after a skipped step, or dividing the batch among other
        # ranks must draw the same masks.

    def describe(self, index: int) -> str:
        """Return the source of an example for messages: file and position."""
