"""Task of text classification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Column, Head, Metrics, Records, Samples, Task, Tokenizer
from launcher.errors import DataError
from launcher.task import _scores
from launcher.task._export import export
from launcher.task._padded import PaddedSamples, Ragged
from launcher.task._token_samples import NO_TARGET

# Records that are encoded together: fast tokenizers use several threads for them.
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class ClassificationSettings:
    """Settings of a classification; `TextClassification` documents them."""

    seq_len: int
    problem_type: Literal["single_label", "multi_label", "regression"]
    labels: tuple[str, ...] | None
    class_weights: Literal["balanced"] | Mapping[str, float] | None
    label_smoothing: float


class Classification(Task):
    """Predicts a label, several labels or a number for each text."""

    def __init__(
        self, tokenizer: Tokenizer, columns: Sequence[Column], settings: ClassificationSettings
    ) -> None:
        *self._texts, self._label = columns
        self.columns = tuple(column.name for column in columns)
        self._tokenizer, self._settings = tokenizer, settings
        self.head = Head("sequence_classification", settings.labels or ())
        self._weights: Tensor | None = None

    @override
    def samples(self, records: Records) -> Samples:
        settings = self._settings
        raw = [self._label.read(records, index) for index in range(len(records))]
        if not self.head.labels:
            self._set_labels(self._labels_of(raw, records))
        if self._weights is None and settings.class_weights is not None:
            self._weights = self._class_weights(raw)
        values = {"labels": self._encoded_labels(raw, records)}
        rows = encode(records, self._texts, self._tokenizer, settings.seq_len)
        padding: dict[str, Tensor] = {"labels": torch.full((1,), NO_TARGET)}
        if settings.problem_type != "single_label":
            # No number is free to mark the padding, but NaN is.
            padding = {"labels": torch.full((1, *values["labels"].shape[1:]), torch.nan)}
        targets = np.ones(len(records), dtype=np.int64)
        return PaddedSamples(records, rows, values=values, padding=padding, targets=targets)

    @override
    def learned(self) -> Mapping[str, Any]:
        return {"labels": list(self.head.labels)}

    @override
    def restore(self, learned: Mapping[str, Any]) -> None:
        self._set_labels(learned["labels"])

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return {name: value for name, value in inputs.items() if name != "labels"}

    @override
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        weights = self._weights
        if weights is not None:
            weights = weights.to(outputs.logits.device)
        return self._losses(
            outputs, inputs, weights=weights, smoothing=self._settings.label_smoothing
        ).sum()

    @override
    def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # Without weights and smoothing: scores of runs with different ones can be compared.
        return {
            "loss": self._losses(outputs, inputs),
            "logits": outputs.logits.float(),
            "labels": inputs["labels"],
        }

    @override
    def metrics(self, samples: Samples) -> Metrics:
        match self._settings.problem_type:
            case "single_label":
                return LabelMetrics(len(self.head.labels))
            case "multi_label":
                return MultiLabelMetrics()
            case "regression":
                return RegressionMetrics()

    @override
    def references(self, records: Records) -> Mapping[str, float]:
        if self._settings.problem_type != "single_label":
            return {}
        found = Counter(_name(self._label.read(records, i)) for i in range(len(records)))
        return {"majority_accuracy": max(found.values()) / len(records)}

    @override
    def export(self, module: nn.Module, folder: Path) -> None:
        model: Any = module
        # Pipelines choose softmax, sigmoid or neither by it.
        suffix = "" if self._settings.problem_type == "regression" else "_classification"
        model.config.problem_type = f"{self._settings.problem_type}{suffix}"
        export(module, self._tokenizer, folder)

    def _losses(
        self,
        outputs: Any,
        inputs: Mapping[str, Tensor],
        weights: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Return the loss of each sample. Shape (B,), float32."""
        logits, labels = outputs.logits.float(), inputs["labels"]
        if self._settings.problem_type == "single_label":
            return F.cross_entropy(
                logits,
                labels,
                weight=weights,
                ignore_index=NO_TARGET,
                reduction="none",
                label_smoothing=smoothing,
            )
        there = ~labels.isnan()
        labels = labels.nan_to_num()
        if self._settings.problem_type == "multi_label":
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        else:
            losses = (logits - labels).square()
        return torch.where(there, losses, 0.0).mean(dim=-1)

    def _set_labels(self, labels: Sequence[str]) -> None:
        self.head = Head("sequence_classification", tuple(labels))

    def _labels_of(self, raw: Sequence[Any], records: Records) -> Sequence[str]:
        if self._settings.problem_type == "regression":
            return ["score"]
        given = records.class_names.get(self._label.name)
        if given is not None:
            return given
        found = {label for value in raw for label in _each(value)}
        if len(found) < 2:
            raise DataError(
                f"the training records have one label in {self._label.name}: "
                f"{', '.join(map(str, found)) or 'none'}; there is nothing to tell apart"
            )
        # Numbers in their order: 10 comes after 9.
        return [_name(label) for label in sorted(found, key=_order)]

    def _encoded_labels(self, raw: Sequence[Any], records: Records) -> Any:
        if self._settings.problem_type == "regression":
            return np.array([[float(value)] for value in raw], dtype=np.float32)
        numbers = {label: number for number, label in enumerate(self.head.labels)}
        for index, value in enumerate(raw):
            for label in _each(value):
                if _name(label) not in numbers:
                    raise DataError(
                        f"{records.describe(index)}: the label {label!r} is none of those of the "
                        f"training records: {', '.join(list(numbers)[:20])}"
                    )
        if self._settings.problem_type == "single_label":
            return np.array([numbers[_name(value)] for value in raw], dtype=np.int64)
        found = np.zeros((len(raw), len(numbers)), dtype=np.float32)
        for index, value in enumerate(raw):
            found[index, [numbers[_name(label)] for label in value]] = 1
        return found

    def _class_weights(self, raw: Sequence[Any]) -> Tensor:
        labels, given = self.head.labels, self._settings.class_weights
        if isinstance(given, Mapping):
            if unknown := given.keys() - set(labels):
                raise DataError(
                    f"task.class_weights: {', '.join(sorted(unknown))} is no label; the labels are "
                    f"{', '.join(labels)}"
                )
            return torch.tensor([float(given.get(label, 1)) for label in labels])
        counts = Counter(_name(value) for value in raw)
        # A label without a training record has no loss either.
        totals = [
            len(raw) / len(counts) / counts[label] if counts[label] else 1 for label in labels
        ]
        return torch.tensor(totals)


def encode(
    records: Records, texts: Sequence[Column], tokenizer: Tokenizer, max_length: int
) -> dict[str, Ragged]:
    """Encode one or two columns of texts as inputs of a model."""
    found: dict[str, list[Sequence[int]]] = {}
    for start in range(0, len(records), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(records)))
        first, *second = ([column.read(records, i) for i in indices] for column in texts)
        encoded = tokenizer.encode_inputs(first, second[0] if second else None, max_length)
        for name, rows in encoded.items():
            found.setdefault(name, []).extend(rows)
    pads = {"input_ids": tokenizer.pad_id}
    ragged = {name: Ragged.of(rows, pads.get(name, 0)) for name, rows in found.items()}
    # Zeros are what models assume, and not every architecture takes them.
    return {k: v for k, v in ragged.items() if k == "input_ids" or v.values.any()}


class _Collected(Metrics):
    """Predictions of all samples."""

    def __init__(self) -> None:
        self._batches: list[Mapping[str, Tensor]] = []

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        self._batches.append(predictions)

    def _all(self, name: str) -> Any:
        return torch.cat([batch[name] for batch in self._batches]).double().cpu().numpy()


class LabelMetrics(_Collected):
    """Scores of one label per sample: F1 is the mean over the labels."""

    names = ("eval_loss", "eval_accuracy", "eval_f1", "eval_mcc")

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    @override
    def compute(self) -> dict[str, float]:
        labels = self._all("labels").astype(np.int64)
        matrix = _scores.confusion(labels, self._all("logits").argmax(axis=1), self._count)
        return {
            "eval_loss": float(self._all("loss").mean()),
            "eval_accuracy": _scores.accuracy(matrix),
            "eval_f1": _scores.macro_f1(matrix),
            "eval_mcc": _scores.matthews(matrix),
        }


class MultiLabelMetrics(_Collected):
    """Scores of several labels per sample, predicted where the probability is above 0.5."""

    names = ("eval_loss", "eval_accuracy", "eval_f1", "eval_f1_micro", "eval_auroc")

    @override
    def compute(self) -> dict[str, float]:
        labels, logits = self._all("labels") > 0, self._all("logits")
        right, there, found = ((logits > 0) & labels), labels, logits > 0
        sums = [each.sum(axis=0) for each in (right, there, found)]
        seen = (sums[1] + sums[2]) > 0
        areas = [_scores.auroc(labels[:, i], logits[:, i]) for i in range(labels.shape[1])]
        return {
            "eval_loss": float(self._all("loss").mean()),
            # All labels of a sample right.
            "eval_accuracy": float((found == there).all(axis=1).mean()),
            "eval_f1": float((2 * sums[0][seen] / (sums[1] + sums[2])[seen]).mean()),
            "eval_f1_micro": float(2 * right.sum() / max(there.sum() + found.sum(), 1)),
            "eval_auroc": float(np.nanmean(areas)) if not np.isnan(areas).all() else 0.5,
        }


class RegressionMetrics(_Collected):
    """Mean squared error (the loss), and correlations with the numbers to predict."""

    names = ("eval_loss", "eval_pearson", "eval_spearman")

    @override
    def compute(self) -> dict[str, float]:
        labels, predicted = self._all("labels")[:, 0], self._all("logits")[:, 0]
        return {
            "eval_loss": float(self._all("loss").mean()),
            "eval_pearson": _scores.pearson(labels, predicted),
            "eval_spearman": _scores.spearman(labels, predicted),
        }


def _each(value: Any) -> Iterable[str | int]:
    return value if isinstance(value, list) else [value]


def _name(label: str | int) -> str:
    return str(label)


def _order(label: str | int) -> tuple[bool, float, str]:
    return isinstance(label, str), 0 if isinstance(label, str) else label, str(label)
