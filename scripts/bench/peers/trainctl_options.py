"""The shared workload as a third party's extension of trainctl: a model, a task and a data kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from launcher.contracts import (
    DataOption,
    DataSplits,
    Document,
    MicroBatch,
    ModelLimits,
    ModelOption,
    Samples,
    Task,
    TaskOption,
    Tokenizer,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

Sized = Literal["nano", "tiny", "mid"]


class NoTokenizer:
    """Random ids have no text."""

    eos_id = 0
    vocab_size = 0

    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        return len(ids)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        raise NotImplementedError(text)

    def decode(self, ids: Sequence[int]) -> str:
        return str(ids)

    def save(self, folder: Path) -> None:
        del folder


class BenchModel(ModelOption):
    """The GPT that every peer trains."""

    size: Sized

    @override
    def limits(self) -> ModelLimits:
        return ModelLimits(vocab_size=2048, max_positions=256)

    @override
    def build(self) -> nn.Module:
        from scripts.bench.peers.common import GPT, SIZES

        return GPT(SIZES[self.size])

    @override
    def build_tokenizer(self) -> Tokenizer:
        return NoTokenizer()


class BenchData(DataOption):
    """No documents: the task draws its own rows."""

    @override
    def build(self) -> DataSplits:
        return DataSplits([Document("random rows", "")], [])


class BenchTask(TaskOption):
    """The rows that every peer reads, in the order in which they read them."""

    size: Sized
    rows: int

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        del tokenizer
        return BenchWork(self.size, self.rows)


class BenchWork:
    """The live task."""

    def __init__(self, size: Sized, rows: int) -> None:
        self._size, self._rows = size, rows

    def samples(self, documents: Sequence[Document]) -> Samples:
        # The one document is the training set; there is nothing to evaluate on.
        return BenchRows(self._size, self._rows if documents else 0)

    def references(self, documents: Sequence[Document]) -> dict[str, float]:
        del documents
        return {}

    def loss(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        mean: Tensor = module(**inputs)["loss"]
        return mean * inputs["labels"].numel()

    def scores(self, loss_sum: float, num_targets: int, samples: Samples) -> dict[str, float]:
        del samples
        return {"eval_loss": loss_sum / num_targets}

    def sample(self, module: nn.Module) -> str | None:
        del module
        return None

    def export(self, module: nn.Module, folder: Path) -> None:
        del module, folder


class BenchRows:
    """The rows, served in the order in which the peers read them."""

    fingerprint = "random"

    def __init__(self, size: Sized, rows: int) -> None:
        from scripts.bench.peers.common import SIZES, RandomTokens

        self._data = RandomTokens(SIZES[size], rows).data
        self._seq_len = SIZES[size].seq_len
        self._next = 0

    def __len__(self) -> int:
        return len(self._data)

    def num_targets(self, indices: Sequence[int]) -> int:
        return len(indices) * self._seq_len

    def micro_batch(self, indices: Sequence[int]) -> MicroBatch:
        # The shuffle was paid for, its result is not used.
        start, self._next = self._next, self._next + len(indices)
        rows = self._data[start : self._next]
        inputs = {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}
        return MicroBatch(inputs, self.num_targets(indices), indices)

    def describe(self, index: int) -> str:
        return f"row {index}"
