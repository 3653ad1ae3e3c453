"""Training objectives: head, inputs, loss, predictions and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.contracts.data import Records, Samples

HeadName = Literal[
    "causal_lm",
    "masked_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "seq2seq",
]


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer that a task needs.

    Attributes:
        name: Its kind, as transformers' Auto classes distinguish them.
        labels: Names of the classes, in the order of the outputs; empty where there are none.
    """

    name: HeadName
    labels: tuple[str, ...] = ()


class Metrics(Protocol):
    """Collects the predictions of one evaluation."""

    names: Sequence[str]
    """Keys of what `compute` returns."""

    def add(self, predictions: Mapping[str, Tensor]) -> None:
        """Collect the predictions of the next samples, in sample order.

        Args:
            predictions: What `Task.predict` returned, on any device. Keep them there: reading them
                makes the host wait for the device after every batch.
        """

    def compute(self) -> dict[str, float]:
        """Return the metrics of all samples added; at least one."""


class Task(ABC):
    """A training objective, independent of engines, ranks and optimizers.

    Attributes:
        head: The output layer that the model must have; complete once `samples` has read
            the training records, from which the labels' names are taken.
        columns: The columns that every record must have.
    """

    head: Head
    columns: tuple[str, ...]

    @abstractmethod
    def samples(self, records: Records) -> Samples:
        """Encode records; called with the training records first.

        Raises:
            DataError: There is no example, or a record is not what the task can encode.
        """

    def learned(self) -> Mapping[str, Any]:
        """Return what `samples` took from the training records, such as labels, as JSON values."""
        return {}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Set what `learned` returned in another process, instead of reading training records."""
        del learned

    def prepare_module(self, module: nn.Module) -> None:
        """Change how the built network computes its outputs, before the engine takes it.

        Names of parameters must stay. By default nothing changes.

        Raises:
            ConfigError: The network does not support the task's settings.
        """
        del module

    @abstractmethod
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Select the keyword arguments of the module's forward pass from a micro-batch's inputs."""

    @abstractmethod
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the losses of all targets. Shape (), float32, on the outputs' device.

        Args:
            outputs: What the module returned.
            inputs: All inputs of the micro-batch, on the same device.
        """

    @abstractmethod
    def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Reduce the outputs to what the metrics need: tensors by name.

        The first dim of each is the batch, and a sample's row does not depend on the others, so
        that the metrics are the same for every division of the samples into micro-batches.
        """

    @abstractmethod
    def metrics(self, samples: Samples) -> Metrics:
        """Return empty metrics for one evaluation of some samples."""

    def references(self, records: Records) -> Mapping[str, float]:
        """Return baselines of the metrics on held-out records, by name; none by default."""
        del records
        return {}

    def sample(self, module: nn.Module) -> str | None:
        """Generate a short text for the console; None (the default) where the task has none."""
        del module
        return None

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained model in the format of transformers."""
        # A model of a third party may be a plain module: then there is nothing to write.
        if save := getattr(module, "save_pretrained", None):
            save(folder)
