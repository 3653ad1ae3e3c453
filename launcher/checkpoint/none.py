"""No checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import CheckpointOption

if TYPE_CHECKING:
    from launcher.contracts import CheckpointStore, EngineState, Snapshot, World
    from launcher.run_dir import RunDir


class NoCheckpoints(CheckpointOption):
    """Never saves; for benchmarks and short trials."""

    kind: Literal["none"]
    every_steps: None = Field()
    """Must be null: nothing is ever saved."""
    every_minutes: None = Field()
    """Must be null: nothing is ever saved."""

    @override
    def has_saved(self, run_dir: RunDir) -> bool:
        del run_dir
        return False

    @override
    def build(self, run_dir: RunDir, world: World) -> CheckpointStore:
        del run_dir, world
        return _Nowhere()


class _Nowhere:
    """Store that saves nothing."""

    def save(self, snapshot: Snapshot) -> None:
        del snapshot

    def poll(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def has_any(self) -> bool:
        return False

    def load(self, live: EngineState) -> Snapshot | None:
        del live
        return None

    def close(self) -> None:
        pass
