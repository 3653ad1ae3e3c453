"""Restarts of all ranks after the failure of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import (
    CheckpointError,
    ConfigError,
    ConnectionLost,
    DataError,
    Hang,
    Interrupted,
    LaunchError,
    LostRank,
    NonFinite,
    OutOfMemory,
    Preempted,
    Problem,
    RankFailed,
    TrainctlError,
)
from launcher.launch._restarts import Attempt, with_restarts
from launcher.run_dir import RunDir
from tests.launch.standin import launch


def restarts(path: Path) -> list[dict[str, Any]]:
    file = path / "restarts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


KILLED = RankFailed("rank 1 was killed by SIGKILL; see rank-1.log", 137)


class Ranks:
    """Attempts that end with the given steps and errors; after the last, the run is complete."""

    def __init__(self, *ends: tuple[int, TrainctlError], stopping: bool = False) -> None:
        self.ends, self.stopping = list(ends), stopping

    def __call__(self, attempt: Attempt) -> str:
        if not self.ends:
            return "complete"
        attempt.stopping = self.stopping
        attempt.step, error = self.ends.pop(0)
        raise error


def test_a_killed_rank_restarts_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = RunDir(tmp_path)
    assert with_restarts(Ranks((7, KILLED)), run_dir, 2) == ("complete", 1)
    [one] = restarts(tmp_path)
    assert one == one | {"attempt": 1, "exit_status": 137, "reached_step": 7, "from_step": 0}
    message = "rank 1 was killed by SIGKILL; see rank-1.log"
    assert (one["error"], one["message"]) == ("RankFailed", message)
    assert capsys.readouterr().err == f"trainctl: {message}; restart 1 of 2 from step 0\n"


@pytest.mark.parametrize(
    ("steps", "used", "note"),
    [
        # The same step again: a failure of the program itself.
        (
            [7, 7, 7, 7],
            2,
            "the last 2 attempts saved no checkpoint and came no further than step 7",
        ),
        ([0, 0, 0], 2, "came no further than step 0"),
        # Once less by chance, then further.
        ([7, 5, 8, 8, 9, 10], 5, "all restarts are used (launch.max_restarts=5)"),
    ],
)
def test_restarts_end(tmp_path: Path, steps: Sequence[int], used: int, note: str) -> None:
    errors = [RankFailed("rank 1 was killed by SIGKILL", 137) for _ in steps]
    with pytest.raises(RankFailed) as caught:
        with_restarts(Ranks(*zip(steps, errors, strict=True)), RunDir(tmp_path), 5)
    assert len(restarts(tmp_path)) == used
    assert note in notes(caught.value)


@pytest.mark.parametrize(
    ("error", "stopping", "budget"),
    [(DataError("line 3"), False, 3), (KILLED, True, 3), (KILLED, False, 0)],
    ids=["error of the data", "asked to stop", "no budget"],
)
def test_no_restart(tmp_path: Path, error: TrainctlError, stopping: bool, budget: int) -> None:
    with pytest.raises(type(error)):
        with_restarts(Ranks((7, error), stopping=stopping), RunDir(tmp_path), budget)
    assert restarts(tmp_path) == []


def test_a_rank_that_is_killed_while_it_saves_to_stop_is_not_restarted(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="SIGKILL"):
        launch(tmp_path, "killed_while_it_saves", restarts=3)
    assert restarts(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RankFailed("rank 1 was killed by SIGKILL", 137), True),
        (RankFailed("rank 1 failed: KeyError: 'weight'", 1), False),
        (ConnectionLost("rank 1 lost the connection", 1), True),
        (Hang("rank 1 is missing", [1]), True),
        (LostRank("rank 1 did not answer"), True),
        (CheckpointError("no space left"), False),
        (ConfigError([Problem("a", "b")]), False),
        (DataError("line 3"), False),
        (NonFinite("the loss is nan"), False),
        (OutOfMemory("of the device"), False),
        (LaunchError("no device"), False),
        (Preempted("SIGTERM"), False),
        (Interrupted("SIGINT"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_errors_a_restart_can_cure(error: TrainctlError, expected: bool) -> None:
    assert error.is_transient is expected
