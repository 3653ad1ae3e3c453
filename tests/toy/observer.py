"""An observer of a third party: one file, conf/observer/toy.yaml and one entry point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Observer, ObserverOption, RunContext, StepReport, Stop


class ToyObserver(ObserverOption):
    """Write down every step that a rank sees, and stop the run after one of them."""

    stop_after: int = Field(gt=0)
    unread: int
    """Nothing reads it: a run warns of it where it was set."""

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        path = context.run_dir.path / f"seen-{context.world.rank}.txt"
        return [_Seen(path, self.stop_after, context.start.observers)]


class _Seen(Observer):
    def __init__(self, path: Path, stop_after: int, memory: Mapping[str, float]) -> None:
        self._path, self._stop_after = path, stop_after
        self._seen = int(memory.get("toy.seen", 0))

    @override
    def __call__(self, report: StepReport) -> Stop | None:
        self._seen += 1
        self._write(f"{report.state.step}")
        return Stop("the toy says so") if report.state.step == self._stop_after else None

    @override
    def memory(self) -> Mapping[str, float]:
        return {"toy.seen": self._seen}

    @override
    def close(self) -> None:
        self._write(f"closed after {self._seen}")

    def _write(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")
