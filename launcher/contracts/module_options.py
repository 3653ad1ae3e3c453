"""Base classes of the options that change how a built network computes: memory, speed, averages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from launcher.contracts.options import Option

if TYPE_CHECKING:
    from torch import Tensor, nn


class ActivationOption(Option):
    """Treatment of the activations between the forward and the backward pass."""

    @abstractmethod
    def apply(self, module: nn.Module) -> None:
        """Change the blocks of a network, before it is compiled and the engine takes it.

        Names of modules and parameters stay, as do the numbers.

        Raises:
            ConfigError: The network does not have what the option names.
        """


class CompileOption(Option):
    """Compilation of the network by torch.compile."""

    @property
    def compiles(self) -> bool:
        """True if the run compiles anything."""
        return False

    @property
    def compiles_root(self) -> bool:
        """True if the network is compiled as one, and not block by block."""
        return False

    @property
    def seconds(self) -> float:
        """Time that this process has spent on compilation so far."""
        return 0.0

    @abstractmethod
    def apply(self, module: nn.Module) -> None:
        """Let the network compile its forward passes, before the engine takes it."""

    def suspended(self) -> AbstractContextManager[object]:
        """Return a context in which the network computes without compilation."""
        return nullcontext()

    def explained(self) -> AbstractContextManager[object]:
        """Return a context that replaces the compiler's errors by a TrainctlError."""
        return nullcontext()


class WeightAverage(Protocol):
    """Moving average of the trained weights, of this rank's shards where they are sharded."""

    @property
    def in_evaluation(self) -> bool:
        """True if evaluations use the averages in place of the weights."""

    @property
    def in_export(self) -> bool:
        """True if exports and samples use them."""

    def update(self) -> None:
        """Include the weights after an applied update."""

    def swap(self) -> None:
        """Exchange weights and averages; a second call restores both, bit for bit."""

    def averages(self) -> Mapping[str, Tensor]:
        """Return the live averages, by canonical name of the parameter."""

    def counters(self) -> Mapping[str, Tensor]:
        """Return the rest of the state; the same on every rank."""


class EmaOption(Option):
    """Exponential moving average of the weights."""

    @property
    def replaces_weights(self) -> bool:
        """True if evaluations or exports use an average in place of the weights."""
        return False

    @abstractmethod
    def build(self, params: Mapping[str, Tensor]) -> WeightAverage | None:
        """Return the average of parameters, or None for none.

        Args:
            params: What the optimizer updates, by canonical name.
        """
