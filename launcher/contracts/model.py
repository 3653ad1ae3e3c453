"""Base class of the options of models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from typing_extensions import override

from launcher.contracts.options import DType, Option
from launcher.contracts.task import HeadName
from launcher.errors import DataError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from launcher.contracts.config import ConfigView
    from launcher.contracts.data import Tokenizer
    from launcher.contracts.task import Head


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits of a network.

    Attributes:
        vocab_size: Rows of the embedding table; ids are below it.
        max_positions: Longest sequence in tokens; None where there is no limit.
    """

    vocab_size: int
    max_positions: int | None


@dataclass(frozen=True, slots=True)
class SavedWeight:
    """A tensor in a file.

    Attributes:
        path: The file.
        offset: Position of its first byte.
        dtype: Its number format, as torch names it; elements are contiguous, little-endian.
    """

    path: Path
    offset: int
    dtype: str


class ModelOption(Option):
    """The network, and its tokenizer."""

    heads: ClassVar[Collection[HeadName]] = get_args(HeadName)
    """Heads that the network supports, independent of field values."""

    @property
    def has_pretrained_weights(self) -> bool:
        """True if training starts from pretrained weights."""
        return False

    @property
    def approximate_size(self) -> int | None:
        """Approximate number of parameters; None where it is unknown without building the network.

        Used to warn of learning rates that were tuned on a model of another size.
        """
        return None

    @abstractmethod
    def limits(self) -> ModelLimits:
        """Return the limits of the network, without building it.

        Raises:
            DataError: The file with the limits cannot be read.
        """

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        if config.task.head not in self.heads:
            yield Problem(
                "task",
                f"needs a {config.task.head} head, but model={self.kind} has only "
                f"{', '.join(self.heads)}; choose another task or model",
            )
        try:
            positions = self.limits().max_positions
        except DataError:
            # `problems` must not report what needs files: preflight does.
            return
        seq_len = config.task.seq_len
        # A learned table would fail inside a kernel. Rotary positions would fail silently: the
        # model has never seen these positions.
        if positions is not None and seq_len > positions:
            yield Problem(
                "task.seq_len",
                f"must be at most {positions}, the positions that the model has, but is {seq_len}; "
                f"write task.seq_len={positions} or choose a model with more positions",
            )

    @abstractmethod
    def build(self, head: Head, device: str) -> nn.Module:
        """Build the network in float32, in training mode.

        Tensors with memory are final (loaded from a file). Those on the meta device are allocated
        and initialised afterwards, by the `_init_weights` of a transformers model or the
        `reset_parameters` of their modules.

        Args:
            head: Output layer.
            device: Device of loaded tensors, as torch names it; with `meta` nothing is loaded.

        Raises:
            DataError: The files have no such network.
        """
        # Each tensor is drawn from (seed, name) afterwards, so that every engine starts from the
        # same weights without any rank allocating the full model. A network without files is
        # therefore best built on the meta device, whatever `device` is.

    def saved_weights(self, head: Head) -> Mapping[str, SavedWeight] | None:
        """Return where the pretrained weights are, by the names that they have in the network.

        Tensors without an entry are drawn. None (the default) where files do not have the tensors
        as the network has them (other shapes, several in one): then every rank loads all of them.
        """
        del head
        return None

    @abstractmethod
    def build_tokenizer(self) -> Tokenizer:
        """Build the tokenizer of the network."""

    def check_module(self, module: nn.Module, head: Head) -> None:
        """Check the network with its weights; called once, on the CPU.

        Raises:
            DataError: It cannot be trained for the head's task.
        """
        del module, head

    def source_dtype(self) -> DType | None:
        """Return the number format of the pretrained weights; None for new ones."""
        return None

    def weights_fingerprint(self) -> Mapping[str, str]:
        """Return a hash of each file of pretrained weights, by its name; none for new weights.

        Raises:
            DataError: A file cannot be read.
        """
        return {}

    def shrunk(self, folder: Path, seq_len: int) -> ModelOption:
        """Return the option of a small network of the same architecture, with new weights.

        `trainctl verify --shrink` trains it, so that a comparison takes seconds. By default the
        network itself.

        Args:
            folder: An existing folder for files of the small network, kept while it is used.
            seq_len: Longest sequence that it will see, in tokens.
        """
        del folder, seq_len
        return self

    def auxiliary_losses(self, module: nn.Module, outputs: Any) -> Mapping[str, Tensor]:
        """Return losses of the network to add to the task's loss, by name.

        Each is a mean over the micro-batch, times its weight in the loss.

        Args:
            module: The network.
            outputs: Output of its forward pass.
        """
        # For the load balance of mixtures of experts, which transformers adds only to a loss that
        # it computes itself.
        del module, outputs
        return {}
