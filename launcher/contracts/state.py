"""Counters and state of a run between two optimizer steps, apart from the engine's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from launcher.contracts.data import Window
    from launcher.contracts.engine import UpdateStats


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """The run's counters, and the state of its schedule and observers.

    Attributes:
        step: Optimizer steps done, skipped updates included.
        samples: Samples seen, over all ranks; also the position in the data.
        tokens: Target tokens seen, over all ranks.
        skipped: Updates that were not applied because loss or gradient norm was not finite.
        memory: State of the schedule (reduce-on-plateau; empty for the others).
        observers: State of the observers, `<observer>.<name>`; only in a checkpoint.
        stopped: Reason with which an observer ended the run after this step, if one did.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    memory: Mapping[str, float] = field(default_factory=dict)
    observers: Mapping[str, float] = field(default_factory=dict)
    stopped: str | None = None

    def advance(self, window: Window, update: UpdateStats) -> Self:
        """Return the state after one more window."""
        # A skipped update counts as a step: learning rate and data order are functions of the
        # step, and must not differ between runs that skipped at different places.
        return replace(
            self,
            step=self.step + 1,
            samples=self.samples + window.num_samples,
            tokens=self.tokens + window.num_targets,
            skipped=self.skipped + (not update.applied),
        )

    def stop(self, reason: str) -> Self:
        """Return the state as the last one of the run."""
        return replace(self, stopped=reason)

    def update_memory(self, memory: Mapping[str, float]) -> Self:
        """Return the state with the schedule's new memory."""
        # Most schedules return the memory as it was: no copy at each evaluation.
        return self if memory is self.memory else replace(self, memory=memory)

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            **asdict(self),
            "memory": dict(self.memory),
            "observers": dict(self.observers),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the state from the values of `to_json`.

        Raises:
            CheckpointError: A key is missing or unknown, or a value is not of its type.
        """
        # Strict: a missing counter would be 0, and the run would read its data a second time.
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            raise CheckpointError(
                f"train_state.json must have the keys {', '.join(sorted(expected))}, "
                f"but has {', '.join(sorted(values))}"
            )
        for name, value in values.items():
            if (problem := _problem(name, value)) is not None:
                raise CheckpointError(
                    f"train_state.json: {name} must be {problem}, but is {value!r}"
                )
        return cls(**values)


def _problem(name: str, value: Any) -> str | None:
    if name in {"step", "samples", "tokens", "skipped"}:
        # Not isinstance: True is an int in Python.
        return None if type(value) is int and value >= 0 else "a whole number, at least 0"
    if name == "stopped":
        return None if value is None or isinstance(value, str) else "a text or null"
    if isinstance(value, Mapping) and all(type(each) in {int, float} for each in value.values()):
        return None
    return "an object of numbers"
