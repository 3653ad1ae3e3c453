"""Interface of checkpoint stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.contracts.engine import EngineState


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Complete state of a run between two steps.

    Attributes:
        step: Optimizer steps done.
        engine: Model and optimizer.
        train_state: `TrainState` as JSON values.
        rng: State of each of this rank's generators by name, uint8 tensors of shape (n,); empty in
            a loaded snapshot if the checkpoint was saved on fewer ranks.
        config: The text of config.json.
        data_fingerprint: Hash of the training examples.
    """

    step: int
    engine: EngineState
    train_state: Mapping[str, Any]
    rng: Mapping[str, Tensor]
    config: str
    data_fingerprint: str


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """A published checkpoint.

    Attributes:
        step: Optimizer steps done when it was saved.
        path: Its folder.
        num_bytes: Size of its files, in bytes.
        ranks: Number of ranks that wrote it.
    """

    step: int
    path: Path
    num_bytes: int
    ranks: int


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """The config of a checkpoint, verified.

    Attributes:
        path: Its file.
        run_id: The run that saved it.
        text: The text of config.json at that time.
    """

    path: Path
    run_id: str
    text: str


class CheckpointStore(Protocol):
    """The checkpoints of one run: published atomically, verified before they are used.

    All methods but `poll` are collective: every rank calls them in the same order.
    """

    # Collective also where only rank 0 writes: an error on one rank must end all of them with that
    # error, and not as a hang of the others.

    def save(self, snapshot: Snapshot) -> None:
        """Start a save; returns when the live tensors may change again.

        Raises:
            CheckpointError: This save, or the one before it that was still being written, failed
                on some rank.
        """

    def poll(self) -> None:
        """Raise the error of a save in the background, if it failed.

        Not collective: ranks may raise one step apart, and the run ends with the first error.
        """

    def wait(self) -> None:
        """Wait until the last save is published, for a bounded time."""

    def has_any(self) -> bool:
        """Return True if the run has checkpoints, valid or not; the same on all ranks."""

    def load(self, live: EngineState) -> Snapshot | None:
        """Copy the newest valid checkpoint into live tensors; return None if the run has none.

        Args:
            live: Model and optimizer of this rank, filled in place. After an error they are
                undefined.

        Returns:
            The snapshot. Its `engine` has those tensors of `live` that are in the checkpoint, and
            new tensors for `precision.*`.

        Raises:
            CheckpointError: There are checkpoints but none is valid, or the newest valid one is of
                another model.
        """

    def close(self) -> None:
        """Wait for the writer, and free the memory of copies."""
