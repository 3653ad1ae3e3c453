"""The shared workload as a third party's extension of trainctl: a model, a task and a data kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from launcher.contracts import (
    DataOption,
    DataSplits,
    Head,
    Metrics,
    MicroBatch,
    ModelLimits,
    ModelOption,
    Records,
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


class NoTokenizer(Tokenizer):
    """Random ids have no text."""

    eos_id = 0
    vocab_size = 0

    @override
    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        return len(ids)

    @override
    def encode(self, text: str) -> npt.NDArray[np.int32]:
        raise NotImplementedError(text)

    @override
    def decode(self, ids: Sequence[int]) -> str:
        return str(ids)

    @override
    def save(self, folder: Path) -> None:
        del folder


class BenchModel(ModelOption):
    """The GPT that every peer trains."""

    size: Sized

    @override
    def limits(self) -> ModelLimits:
        return ModelLimits(vocab_size=2048, max_positions=256)

    @override
    def build(self, head: Head, device: str) -> nn.Module:
        import torch

        from scripts.bench.peers.common import GPT, SIZES

        del head
        with torch.device(device):
            return GPT(SIZES[self.size])

    @override
    def build_tokenizer(self) -> Tokenizer:
        return NoTokenizer()


class NoRecords(Records):
    """The task draws its own rows."""

    columns = ()
    fingerprint = "random"

    def __init__(self, part: str) -> None:
        self.part = part

    @override
    def __len__(self) -> int:
        return 0

    @override
    def record(self, index: int) -> Mapping[str, Any]:
        raise IndexError(index)

    @override
    def describe(self, index: int) -> str:
        return f"row {index}"


class BenchData(DataOption):
    """No records: the task draws its own rows."""

    @override
    def build(self) -> DataSplits:
        return DataSplits(NoRecords("train"), NoRecords("validation"))


class BenchTask(TaskOption):
    """The rows that every peer reads, in the order in which they read them."""

    head = "causal_lm"

    size: Sized
    rows: int

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        del tokenizer
        return BenchWork(self.size, self.rows)


class BenchWork(Task):
    """The live task."""

    head = Head("causal_lm")
    columns = ()

    def __init__(self, size: Sized, rows: int) -> None:
        self._size, self._rows = size, rows

    @override
    def samples(self, records: Records) -> Samples:
        # There is nothing to evaluate on.
        training = isinstance(records, NoRecords) and records.part == "train"
        return BenchRows(self._size, self._rows if training else 0)

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return inputs

    @override
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        mean: Tensor = outputs["loss"]
        return mean * inputs["labels"].numel()

    @override
    def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        raise NotImplementedError

    @override
    def metrics(self, samples: Samples) -> Metrics:
        return NoMetrics()


class NoMetrics(Metrics):
    """Nothing is evaluated."""

    names = ()

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    @override
    def compute(self) -> dict[str, float]:
        return {}


class BenchRows(Samples):
    """The rows, served in the order in which the peers read them."""

    fingerprint = "random"

    def __init__(self, size: Sized, rows: int) -> None:
        import numpy as np

        from scripts.bench.peers.common import SIZES, RandomTokens

        self._data = RandomTokens(SIZES[size], rows).data
        self._seq_len = SIZES[size].seq_len
        self.lengths = np.full(len(self._data), self._seq_len)
        self._next = 0

    @override
    def __len__(self) -> int:
        return len(self._data)

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return len(indices) * self._seq_len

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        del draw
        # The shuffle was paid for, its result is not used.
        start, self._next = self._next, self._next + len(indices)
        rows = self._data[start : self._next]
        inputs = {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}
        return MicroBatch(inputs, self.num_targets(indices), indices)

    @override
    def describe(self, index: int) -> str:
        return f"row {index}"
