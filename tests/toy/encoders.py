"""A labelled data source and two tasks that are no causal language models, as third parties'.

They prove that the contract carries them: labels that come from the data, accuracy as a metric,
masks that are drawn again in every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from launcher.contracts import (
    DataOption,
    DataSplits,
    Head,
    Metrics,
    MicroBatch,
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
    from torch import Tensor

NO_TARGET = -100
KINDS = ("early", "late", "middle")
BANDS = ("abcdefgh", "rstuvwxyz", "ijklmnopq")


class Words(Numbered):
    """Words whose letters come from the part of the alphabet that the label names."""

    columns = ("text", "label")
    name = "words:"

    @override
    def record(self, index: int) -> Mapping[str, str]:
        number = self.numbers[index]
        band = BANDS[number % 3]
        letters = [band[(number * 7 + place * (number + 3)) % len(band)] for place in range(9)]
        return {"text": "".join(letters[: 5 + number % 5]), "label": KINDS[number % 3]}


class ToyLabels(DataOption):
    """Labelled words."""

    words: int = Field(gt=0)

    @override
    def build(self) -> DataSplits:
        end = self.words
        return DataSplits(Words(range(end)), Words(range(end, end + 30)), Words(range(-9, 0)))


class ToyClasses(TaskOption):
    """Predict the label of a text."""

    head = "sequence_classification"

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        return Classification(tokenizer, self.seq_len)


class Classification(Task):
    """The live task; the labels are those of the training records."""

    columns = ("text", "label")
    head = Head("sequence_classification")

    def __init__(self, tokenizer: Tokenizer, seq_len: int) -> None:
        self.tokenizer, self.seq_len = tokenizer, seq_len

    @override
    def samples(self, records: Records) -> Samples:
        if not self.head.labels:
            found = {records.record(i)["label"] for i in range(len(records))}
            self.head = Head("sequence_classification", tuple(sorted(found)))
        return LabelledTexts(self.tokenizer, self.seq_len, records, self.head.labels)

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    @override
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs.logits.float(), inputs["labels"], reduction="sum")

    @override
    def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(outputs.logits.float(), inputs["labels"], reduction="none")
        predicted = outputs.logits.argmax(dim=-1)
        return {"loss": losses, "label": inputs["labels"], "predicted": predicted}

    @override
    def metrics(self, samples: Samples) -> Metrics:
        return Accuracy()


class Accuracy(Metrics):
    """Share of the samples whose label is predicted."""

    names = ("eval_loss", "eval_accuracy")

    def __init__(self) -> None:
        self.batches: list[Mapping[str, Tensor]] = []

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        self.batches.append(predictions)

    @override
    def compute(self) -> dict[str, float]:
        import torch

        found = {key: torch.cat([each[key] for each in self.batches]) for key in self.batches[0]}
        right = found["label"] == found["predicted"]
        return {
            "eval_loss": found["loss"].double().mean().item(),
            "eval_accuracy": right.double().mean().item(),
        }


class Texts(Samples):
    """Records as rows of ids, the longest at most `seq_len` long."""

    def __init__(self, tokenizer: Tokenizer, seq_len: int, records: Records) -> None:
        import numpy as np

        self.records = records
        self.fingerprint = records.fingerprint
        texts = [records.record(i)["text"] for i in range(len(records))]
        self.rows = [tokenizer.encode(text)[:seq_len].astype(np.int64) for text in texts]
        self.lengths = np.array([len(row) for row in self.rows])

    @override
    def __len__(self) -> int:
        return len(self.rows)

    @override
    def describe(self, index: int) -> str:
        return self.records.describe(index)

    def padded(self, rows: Sequence[npt.NDArray[np.int64]]) -> dict[str, Tensor]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        found = [torch.from_numpy(row) for row in rows] or [torch.zeros(1, dtype=torch.int64)]
        ids = pad_sequence(found, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids != 0).long() if rows else ids + 1}


class LabelledTexts(Texts):
    """One target per sample."""

    def __init__(
        self, tokenizer: Tokenizer, seq_len: int, records: Records, labels: Sequence[str]
    ) -> None:
        super().__init__(tokenizer, seq_len, records)
        self.labels = [labels.index(records.record(i)["label"]) for i in range(len(records))]

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return len(indices)

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        import torch

        labels = torch.tensor([self.labels[i] for i in indices] or [NO_TARGET])
        inputs = self.padded([self.rows[i] for i in indices])
        return MicroBatch({**inputs, "labels": labels}, len(indices), indices)


class ToyMasked(TaskOption):
    """Predict masked letters."""

    head = "masked_lm"

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        return MaskedLanguageModel(tokenizer, self.seq_len)


class MaskedLanguageModel(Task):
    """The live task."""

    columns = ("text",)
    head = Head("masked_lm")

    def __init__(self, tokenizer: Tokenizer, seq_len: int) -> None:
        self.tokenizer, self.seq_len = tokenizer, seq_len

    @override
    def samples(self, records: Records) -> Samples:
        return MaskedTexts(self.tokenizer, self.seq_len, records)

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    @override
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._losses(outputs, inputs).sum()

    @override
    def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        counts = (inputs["labels"] != NO_TARGET).sum(dim=1)
        return {"loss": self._losses(outputs, inputs).sum(dim=1), "num_targets": counts}

    @override
    def metrics(self, samples: Samples) -> Metrics:
        return MeanLoss()

    def _losses(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        from torch.nn.functional import cross_entropy

        logits, labels = outputs.logits.float(), inputs["labels"]
        return cross_entropy(logits.transpose(1, 2), labels, reduction="none")


class MaskedTexts(Texts):
    """Two letters of each text are masked: others in every epoch."""

    masked = 2
    mask_id = 383

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return self.masked * len(indices)

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        import numpy as np
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows, labels = [], [torch.tensor([NO_TARGET])] * (not indices)
        for index in indices:
            row = self.rows[index].copy()
            places = np.random.default_rng([draw, index]).choice(len(row), self.masked, False)
            target = np.full_like(row, NO_TARGET)
            target[places], row[places] = row[places], self.mask_id
            rows.append(row)
            labels.append(torch.from_numpy(target))
        padded = pad_sequence(labels, batch_first=True, padding_value=NO_TARGET)
        inputs = {**self.padded(rows), "labels": padded}
        return MicroBatch(inputs, self.num_targets(indices), indices)
