"""Checkpoints as folders of the run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import CheckpointOption

if TYPE_CHECKING:
    from launcher.contracts import CheckpointStore, World
    from launcher.run_dir import RunDir


class Directory(CheckpointOption):
    """Folders in RUN_DIR/checkpoints: atomic, checksummed, written in the background."""

    kind: Literal["directory"]
    keep: int = Field(ge=1, le=10**6)
    """Number of verified checkpoints to keep; with 2 or more the run survives damage to the
    newest."""
    asynchronous: bool
    """Copy the tensors to CPU memory (the size of model and optimizer state, divided among the
    ranks) and write in the background; if off, training waits until the checkpoint is on disk."""
    timeout_s: float = Field(gt=0, le=86_400)
    """Seconds to wait for the disk and for other ranks before a save that is still
    being written ends the run."""

    @property
    @override
    def copies_state(self) -> bool:
        return self.asynchronous

    @override
    def has_saved(self, run_dir: RunDir) -> bool:
        # A kill between the renames of `publish` leaves only the replaced checkpoint.
        names = ("step-*", ".replaced-step-*")
        return any(True for name in names for _ in run_dir.checkpoints.glob(name))

    @override
    def build(self, run_dir: RunDir, world: World) -> CheckpointStore:
        from launcher.checkpoint._store import DirectoryStore

        return DirectoryStore(
            run_dir,
            world,
            keep=self.keep,
            asynchronous=self.asynchronous,
            timeout_s=self.timeout_s,
        )
