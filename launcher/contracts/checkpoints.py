"""The state of a run on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.contracts.engine import EngineState


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole state of a run between two steps.

    Attributes:
        step: Optimizer steps done.
        engine: Model and optimizer.
        train_state: `TrainState` as JSON values.
        rng: Every rank-local generator's state by name, uint8 tensors of shape (n,).
        config: The text of config.json.
        data_fingerprint: Hash of the training examples.
    """

    step: int
    engine: EngineState
    train_state: Mapping[str, Any]
    rng: Mapping[str, Tensor]
    config: str
    data_fingerprint: str


class CheckpointStore(Protocol):
    """The checkpoints of one run: published whole or not at all, verified before they are used."""

    def save(self, snapshot: Snapshot) -> None:
        """Start saving; returns when the live tensors may change again.

        Raises:
            CheckpointError: This save, or the one before it that was still being written, failed.
        """

    def poll(self) -> None:
        """Raise what a save in the background failed with, if it did."""

    def wait(self) -> None:
        """Wait, for a bounded time, until the last save is published."""

    def load(self, engine: EngineState) -> Snapshot | None:
        """The newest checkpoint that verifies, or None when the run has none.

        Args:
            engine: Live state that tells names, shapes and dtypes; it is not written to.

        Raises:
            CheckpointError: There are checkpoints but none is fit, or the newest fit one does not
                match.
        """

    def close(self) -> None:
        """Wait for the writer and let go."""
