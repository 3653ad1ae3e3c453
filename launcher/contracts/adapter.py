"""Base class of the options of adapters, and what an engine must know of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.contracts.options import Option

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from launcher.contracts.optimizer import OptimizerOption
    from launcher.contracts.task import Head


def _leave(module: nn.Module) -> None:
    del module


@dataclass(frozen=True, slots=True)
class Adapted:
    """Changes of a network by an adapter.

    Attributes:
        trained: Canonical names of the parameters that are trained.
        saved: Canonical names of the tensors in a checkpoint: those, and buffers. The other weights
            are built again from the model's files or the seed.
        prepare: Brings the frozen weights to their number format, in place; an engine calls it
            after `Precision.prepare`.
        stored_bytes: Bytes of the frozen parameters that have another number format than the run,
            by canonical name.
    """

    trained: Collection[str]
    saved: Collection[str]
    prepare: Callable[[nn.Module], None] = _leave
    stored_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTarget:
    """Place and functions for the export of a trained network.

    Attributes:
        folder: `RUN_DIR/export`.
        write: Writes a network in the format of transformers to a folder, and casts it to the
            number format of the export before, in place.
        inputs: Arguments of a forward pass on a few samples, on the CPU.
    """

    folder: Path
    write: Callable[[nn.Module, Path], None]
    inputs: Callable[[], Mapping[str, Any]]


class AdapterOption(Option):
    """Small added weights that are trained in place of the network's."""

    @property
    @abstractmethod
    def is_active(self) -> bool:
        """True if the network's own weights are frozen, and others added."""

    @abstractmethod
    def adapt(self, module: nn.Module, head: Head, seed: int) -> Adapted | None:
        """Freeze the network and add the adapter's weights, in place.

        Args:
            module: The network with its weights; on the meta device, the added ones are there too.
            head: Its output layer.
            seed: Seed of the added weights.

        Returns:
            None if all weights of the network are trained.

        Raises:
            ConfigError: A pattern matches no module, or a library is missing.
        """

    @abstractmethod
    def adjusted(self, optimizer: OptimizerOption) -> OptimizerOption:
        """Return the optimizer with the adapter's own learning rates by parameter group."""

    @abstractmethod
    def write(self, module: nn.Module, target: ExportTarget) -> None:
        """Write the trained network, the adapter, or both; may change the module in place."""
