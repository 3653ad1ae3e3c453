from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import (
    Engine,
    Observer,
    Row,
    Schedule,
    Sink,
    StepReport,
    Stop,
    TrainState,
    UpdateStats,
    Window,
)
from launcher.training.failures import close_all, closing
from launcher.training.loop import train
from launcher.training.metrics import Recorder, RowBuilder
from launcher.training.saving import with_memory


class Still:
    """The part of an engine that the loop calls, without a model."""

    def forward_backward(self, window: Window) -> Tensor:
        return torch.tensor(float(window.num_samples))

    def update(self, lr: float | None) -> UpdateStats:
        return UpdateStats(torch.zeros(()), applied=True)


class Constant(Schedule):
    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        return 1.0


@dataclass
class Watcher(Observer):
    """Keeps what it sees, and stops the run after some steps."""

    stop_after: Sequence[int] = ()
    reason: str = "enough"
    seen: list[tuple[int, bool, str | None, dict[str, float]]] = field(default_factory=list)

    @override
    def __call__(self, report: StepReport) -> Stop | None:
        state = report.state
        self.seen.append((state.step, report.last, state.stopped, dict(report.scores)))
        return Stop(self.reason) if state.step in self.stop_after else None


def windows() -> Iterator[Window]:
    while True:
        yield Window([], 4, 8)


def run(*observers: Observer, max_steps: int = 6, start: TrainState | None = None) -> TrainState:
    return train(
        cast(Engine, Still()),
        windows(),
        Constant(),
        start or TrainState(),
        max_steps=max_steps,
        seed_step=lambda _: None,
        evaluate=lambda report: {"full": float(report.last)},
        observers=observers,
    )


def test_the_run_ends_after_the_step_with_which_an_observer_stops_it() -> None:
    before, stopping, behind = Watcher(), Watcher([3]), Watcher()
    state = run(before, stopping, behind)
    assert (state.step, state.stopped) == (3, "enough")
    steps = [(1, False, None, {"full": 0.0}), (2, False, None, {"full": 0.0})]
    assert before.seen == stopping.seen == [*steps, (3, False, None, {"full": 0.0})]
    assert behind.seen == [*steps, (3, True, "enough", {"full": 1.0})]


def test_the_first_reason_counts() -> None:
    behind = Watcher()
    state = run(Watcher([2], "first"), Watcher([2], "second"), behind)
    assert state.stopped == "first"
    assert [step for step, *_ in behind.seen] == [1, 2]


def test_a_stop_at_the_full_length_is_none() -> None:
    behind = Watcher()
    state = run(Watcher([6]), behind)
    assert (state.step, state.stopped) == (6, None)
    assert behind.seen[-1] == (6, True, None, {"full": 1.0})


def test_a_stopped_state_takes_no_further_step() -> None:
    watcher = Watcher()
    stopped = TrainState(step=3).stop("enough")
    assert run(watcher, start=TrainState.from_json(stopped.to_json())) == stopped
    assert not watcher.seen


def test_memories_are_joined_and_their_names_are_unique() -> None:
    class Remembering(Watcher):
        @override
        def memory(self) -> Mapping[str, float]:
            return {self.reason: 1.0}

    state = with_memory(TrainState(step=2), [Remembering(reason="a"), Remembering(reason="b")])
    assert state == TrainState(step=2, observers={"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="two observers save the state a"):
        with_memory(state, [Remembering(reason="a"), Remembering(reason="a")])


class Closed(Sink):
    def __init__(self, error: str = "") -> None:
        self.closed, self.error = 0, error

    @override
    def write(self, row: Row) -> None: ...

    @override
    def close(self) -> None:
        self.closed += 1
        if self.error:
            raise OSError(self.error)


def test_every_sink_is_closed_even_if_one_fails() -> None:
    sinks = [Closed(), Closed("disk full"), Closed()]
    rows = RowBuilder(every_steps=1, start=TrainState(), logged_step=0, evaluating=lambda: 0.0)
    recorder = Recorder(sinks, rows)
    with pytest.raises(OSError, match="disk full"):
        recorder.close()
    assert [sink.closed for sink in sinks] == [1, 1, 1]


def test_closing_does_not_hide_the_error_that_ended_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sinks = [Closed("first"), Closed(), Closed("second")]
    with (
        pytest.raises(KeyError, match="the error"),
        closing(lambda: close_all([sink.close for sink in sinks])),
    ):
        raise KeyError("the error")
    assert [sink.closed for sink in sinks] == [1, 1, 1]
    assert "closing failed as well" in caplog.text


def test_closing_fails_where_nothing_else_did() -> None:
    sink = Closed("disk full")
    with pytest.raises(OSError, match="disk full"), closing(sink.close):
        pass
    assert sink.closed == 1
