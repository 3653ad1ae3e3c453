"""Tasks for the tests of engines: a loss over plain tensors, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.batching.random import RandomOrder
from launcher.contracts import Engine, Head, Metrics, MicroBatch, Records, Samples, Task
from tests.toy.shared import MeanLoss

RANDOM = RandomOrder(kind="random")


class LogitsTask(Task):
    """Cross entropy for modules that return logits, times the input `weight` where there is one.

    Args:
        argument: Name of the module's one argument.
        source: Name of the input that it takes.
    """

    head = Head("causal_lm")
    columns = ()

    def __init__(self, argument: str, source: str) -> None:
        self.argument, self.source = argument, source

    @override
    def samples(self, records: Records) -> Samples:
        raise NotImplementedError

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return {self.argument: inputs[self.source]}

    @override
    def loss(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(
            _widened(outputs), inputs["labels"].flatten(), reduction="sum"
        )
        return loss * inputs.get("weight", torch.ones(()))

    @override
    def predict(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        labels = inputs["labels"]
        losses = nn.functional.cross_entropy(
            _widened(outputs), labels.flatten(), reduction="none"
        ).view_as(labels)
        counts = labels != -100
        if labels.dim() > 1:
            return {"loss": losses.sum(dim=1), "num_targets": counts.sum(dim=1)}
        return {"loss": losses, "num_targets": counts}

    @override
    def metrics(self, samples: Samples) -> Metrics:
        return MeanLoss()


def mean_loss(live: Engine, micro_batches: Sequence[MicroBatch]) -> float:
    """Evaluate the mean loss per target."""
    metrics = MeanLoss()
    for predictions in live.evaluate(micro_batches, LogitsTask("", "").predict):
        metrics.add(predictions)
    return metrics.compute()["eval_loss"]


def _widened(logits: Tensor) -> Tensor:
    rows = logits.flatten(0, -2)
    return rows if rows.dtype == torch.float64 else rows.float()
