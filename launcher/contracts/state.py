"""State of a run between two optimizer steps, apart from the engine's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from launcher.contracts.data import Window
    from launcher.contracts.engine import UpdateStats


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """The run's counters and explicit memories.

    Attributes:
        step: Optimizer steps done. A skipped update counts: schedules are functions of the data
            seen.
        samples: Samples seen, over all ranks; also the position in the data.
        tokens: Target tokens seen, over all ranks.
        skipped: Updates that were not applied because loss or gradient norm was not finite.
        memory: What the schedule remembers (reduce-on-plateau; empty for the others).
        observers: What observers remember, `<observer>.<name>`; filled in a checkpoint only.
        stopped: Reason with which an observer ended the run after this step; None: nobody did.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    memory: Mapping[str, float] = field(default_factory=dict)
    observers: Mapping[str, float] = field(default_factory=dict)
    stopped: str | None = None

    def advance(self, window: Window, update: UpdateStats) -> Self:
        """The state after one more window."""
        return replace(
            self,
            step=self.step + 1,
            samples=self.samples + window.num_samples,
            tokens=self.tokens + window.num_targets,
            skipped=self.skipped + (not update.applied),
        )

    def stop(self, reason: str) -> Self:
        """The state as the last one of the run."""
        return replace(self, stopped=reason)

    def remember(self, memory: Mapping[str, float]) -> Self:
        """The state with the schedule's new memory."""
        return self if memory is self.memory else replace(self, memory=memory)

    def to_json(self) -> dict[str, Any]:
        """JSON values from which `from_json` makes an equal state."""
        return {
            **asdict(self),
            "memory": dict(self.memory),
            "observers": dict(self.observers),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; a missing or unknown key is a TypeError."""
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            raise TypeError(f"train state has keys {sorted(values)}, expected {sorted(expected)}")
        return cls(**values)
