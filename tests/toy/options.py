"""A model, a task and a data kind that need torch alone, for runs of a second.

They come to trainctl as any third party's would, through entry points (see `toy_words` in
tests/conftest.py), so every end-to-end test is also a test of the extension mechanism.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
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
from tests.toy.shared import MeanLoss, Numbered

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn


class Letters(Tokenizer):
    """Letter a is 0."""

    eos_id = 0
    vocab_size = 26

    @override
    def encode(self, text: str) -> npt.NDArray[np.int32]:
        import numpy as np

        return np.array([ord(c) - 97 for c in text], dtype=np.int32)

    @override
    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + i) for i in ids)

    @override
    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        return len(ids)

    @override
    def save(self, folder: Path) -> None:
        (folder / "letters.txt").write_text("a-z")


class ToyModel(ModelOption):
    """An embedding, dropout and a head: dropout makes the run depend on the generators' state."""

    width: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)

    @override
    def limits(self) -> ModelLimits:
        return ModelLimits(vocab_size=26, max_positions=None)

    @override
    def build(self, head: Head, device: str) -> nn.Module:
        import torch
        from torch import nn

        del head, device
        with torch.device("meta"):
            return nn.Sequential(
                nn.Embedding(26, self.width), nn.Dropout(self.dropout), nn.Linear(self.width, 26)
            )

    @override
    def build_tokenizer(self) -> Tokenizer:
        return Letters()


class MadeUp(Numbered):
    """Words of letters."""

    @override
    def record(self, index: int) -> Mapping[str, str]:
        number = self.numbers[index]
        return {"text": "".join(chr(97 + (number**2 + 3 * j) % 26) for j in range(40))}


class ToyData(DataOption):
    """Some made-up documents."""

    documents: int = Field(gt=0)

    @override
    def build(self) -> DataSplits:
        return DataSplits(MadeUp(range(min(self.documents, 99))), MadeUp(range(94, 99)))


class ToyTask(TaskOption):
    """Predict the next letter. Sample `poison` gives a loss that is not a number; sample `overflow`
    gives a loss like any other, but gradients beyond all range."""

    head = "causal_lm"

    poison: int | None
    overflow: int | None
    step_s: float = Field(ge=0)

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        return NextLetter(tokenizer, self)


class NextLetter(Task):
    """The live task."""

    head = Head("causal_lm")
    columns = ("text",)

    def __init__(self, tokenizer: Tokenizer, option: ToyTask) -> None:
        self.tokenizer, self.option, self.seq_len = tokenizer, option, option.seq_len

    @override
    def samples(self, records: Records) -> Samples:
        return Rows(self, records)

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"input": inputs["input_ids"]}

    @override
    def loss(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        time.sleep(self.option.step_s)
        if outputs.requires_grad and inputs["overflow"].any():
            outputs.register_hook(lambda gradient: gradient + float("inf"))  # type: ignore[no-untyped-call]
        return self._losses(outputs, inputs).sum() * inputs["weight"].prod()

    @override
    def predict(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        counts = (inputs["labels"] != -100).sum(dim=1)
        return {"loss": self._losses(outputs, inputs).sum(dim=1), "num_targets": counts}

    @override
    def metrics(self, samples: Samples) -> Metrics:
        return MeanLoss()

    @override
    def references(self, records: Records) -> dict[str, float]:
        return {"documents": float(len(records))}

    @override
    def sample(self, module: nn.Module) -> str | None:
        return "abc"

    @override
    def export(self, module: nn.Module, folder: Path) -> None:
        import torch

        folder.mkdir(exist_ok=True)
        torch.save(module.state_dict(), folder / "weights.pt")

    def _losses(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        import torch

        labels = inputs["labels"]
        losses = torch.nn.functional.cross_entropy(
            outputs.flatten(0, 1), labels.flatten(), reduction="none"
        )
        return losses.view_as(labels)


class Rows(Samples):
    """Each record is one sample."""

    fingerprint = "toy"

    def __init__(self, task: NextLetter, records: Records) -> None:
        import numpy as np
        import torch

        self.task, self.records = task, records
        texts = [records.record(i)["text"] for i in range(len(records))]
        rows = [task.tokenizer.encode(text)[: task.seq_len + 1] for text in texts]
        self.ids = torch.from_numpy(np.array(rows, dtype=np.int64))
        self.lengths = np.full(len(records), task.seq_len)

    @override
    def __len__(self) -> int:
        return len(self.ids)

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return len(indices) * self.task.seq_len

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        import torch

        rows = self.ids[list(indices or [0])]
        option = self.task.option
        weight = torch.tensor([float("nan") if i == option.poison else 1.0 for i in indices])
        overflow = torch.tensor([i == option.overflow for i in indices], dtype=torch.bool)
        labels = rows[:, 1:] if indices else torch.full_like(rows[:, 1:], -100)
        inputs = {"input_ids": rows[:, :-1], "labels": labels}
        inputs |= {"weight": weight, "overflow": overflow}
        return MicroBatch(inputs, self.num_targets(indices), indices)

    @override
    def describe(self, index: int) -> str:
        return self.records.describe(index)
