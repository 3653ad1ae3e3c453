"""Scores of predicted tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import Metrics, Samples, Task
from launcher.task._language_model import (
    LanguageModelMetrics,
    summed_cross_entropy,
    token_cross_entropy,
)
from launcher.task._token_samples import NO_TARGET


class TokenMetrics(Metrics):
    """`eval_loss` in nats per target, `eval_perplexity`, and the share of right tokens."""

    names = ("eval_loss", "eval_perplexity", "eval_accuracy")

    def __init__(self) -> None:
        self._losses = LanguageModelMetrics(0.0)
        self._right: list[Tensor] = []
        self._counts: list[Tensor] = []

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        self._losses.add(predictions)
        self._right.append(predictions["num_right"])
        self._counts.append(predictions["num_targets"])

    @override
    def compute(self) -> dict[str, float]:
        right, count = (int(torch.cat(each).sum()) for each in (self._right, self._counts))
        return {**self._losses.compute(), "eval_accuracy": right / count}


def predict_tokens(outputs: Any, labels: Tensor) -> Mapping[str, Tensor]:
    """Return the summed loss, the targets and the right predictions of each sample."""
    losses = token_cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    there = labels != NO_TARGET
    right = (outputs.logits.argmax(dim=-1) == labels) & there
    return {
        "loss": losses.view_as(labels).sum(dim=1),
        "num_targets": there.sum(dim=1),
        "num_right": right.sum(dim=1),
    }


class TokenTask(Task):
    """Base class of tasks with a label for each token, `NO_TARGET` for none."""

    @override
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return summed_cross_entropy(outputs.logits.flatten(0, 1), inputs["labels"].flatten())

    @override
    def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return predict_tokens(outputs, inputs["labels"])

    @override
    def metrics(self, samples: Samples) -> Metrics:
        return TokenMetrics()
