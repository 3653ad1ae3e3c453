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


class Letters:
    """Letter a is 0."""

    eos_id = 0
    vocab_size = 26

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        import numpy as np

        return np.array([ord(c) - 97 for c in text], dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + i) for i in ids)

    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        return len(ids)

    def save(self, folder: Path) -> None:
        (folder / "letters.txt").write_text("a-z")


class ToyModel(ModelOption):
    """An embedding, dropout and a head: dropout makes the run depend on the generators' state."""

    width: int = Field(gt=0)

    @override
    def limits(self) -> ModelLimits:
        return ModelLimits(vocab_size=26, max_positions=None)

    @override
    def build(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(
            nn.Embedding(26, self.width), nn.Dropout(0.1), nn.Linear(self.width, 26)
        )

    @override
    def build_tokenizer(self) -> Tokenizer:
        return Letters()


class ToyData(DataOption):
    """Some made-up documents."""

    documents: int = Field(gt=0)

    @override
    def build(self) -> DataSplits:
        texts = ["".join(chr(97 + (i * i + 3 * j) % 26) for j in range(40)) for i in range(99)]
        documents = [Document(f"made-up/{i}", text) for i, text in enumerate(texts)]
        return DataSplits(documents[: self.documents], documents[-5:])


class ToyTask(TaskOption):
    """Predict the next letter. Sample `poison` gives a loss that is not a number; sample `overflow`
    gives a loss like any other, but gradients beyond all range."""

    poison: int | None
    overflow: int | None
    step_s: float = Field(ge=0)

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        return NextLetter(tokenizer, self)


class NextLetter:
    """The live task."""

    def __init__(self, tokenizer: Tokenizer, option: ToyTask) -> None:
        self.tokenizer, self.option, self.seq_len = tokenizer, option, option.seq_len

    def samples(self, documents: Sequence[Document]) -> Samples:
        return Rows(self, documents)

    def references(self, documents: Sequence[Document]) -> dict[str, float]:
        return {"documents": float(len(documents))}

    def loss(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        import torch

        time.sleep(self.option.step_s)
        logits = module(inputs["input_ids"])
        if logits.requires_grad and inputs["overflow"].any():
            logits.register_hook(lambda gradient: gradient + float("inf"))
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), inputs["labels"].flatten(), reduction="sum"
        )
        return loss * inputs["weight"].prod()

    def scores(self, loss_sum: float, num_targets: int, samples: Samples) -> dict[str, float]:
        del samples
        return {"eval_loss": loss_sum / num_targets}

    def sample(self, module: nn.Module) -> str | None:
        del module
        return "abc"

    def export(self, module: nn.Module, folder: Path) -> None:
        import torch

        folder.mkdir(exist_ok=True)
        torch.save(module.state_dict(), folder / "weights.pt")


class Rows:
    """Each document is one sample."""

    fingerprint = "toy"

    def __init__(self, task: NextLetter, documents: Sequence[Document]) -> None:
        import numpy as np
        import torch

        self.task, self.documents = task, documents
        rows = [task.tokenizer.encode(d.text)[: task.seq_len + 1] for d in documents]
        self.ids = torch.from_numpy(np.array(rows, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def num_targets(self, indices: Sequence[int]) -> int:
        return len(indices) * self.task.seq_len

    def micro_batch(self, indices: Sequence[int]) -> MicroBatch:
        import torch

        rows = self.ids[list(indices)]
        option = self.task.option
        weight = torch.tensor([float("nan") if i == option.poison else 1.0 for i in indices])
        overflow = torch.tensor([i == option.overflow for i in indices])
        inputs = {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}
        inputs |= {"weight": weight, "overflow": overflow}
        return MicroBatch(inputs, self.num_targets(indices), indices)

    def describe(self, index: int) -> str:
        return self.documents[index].name
