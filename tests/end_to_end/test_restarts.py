"""A killed rank restarts the run, which ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import trace, weights

TWO = ("launch.processes=2", "checkpoint.every_steps=2", "eval_every_steps=null")
LIMIT_S = 120.0


def await_(condition: Callable[[], Any]) -> Any:
    """Return the value of a condition once it is true."""
    deadline = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return value


class Run:
    """A run that is in progress."""

    def __init__(self, trainctl: Console, *words: str, name: str = "toy") -> None:
        self.trainctl = trainctl
        self.process = trainctl.start("run", *toy_words(f"name={name}", *words))
        folder = trainctl.folder / "runs" / name
        self.path: Path = await_(lambda: next(folder.glob("*/config.json"), None)).parent
        self._killed: list[int] = []

    def ranks(self) -> list[int] | None:
        """The ranks of an attempt in which none has been killed."""
        try:
            pids: list[int] = json.loads((self.path / "run.lock").read_text())["ranks"]
        except (OSError, ValueError, KeyError):
            return None
        return None if set(pids) & set(self._killed) else pids

    def step(self) -> int:
        file = self.path / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def saves(self) -> bool:
        """A rank is writing a checkpoint."""
        folder = self.path / "checkpoints"
        return folder.exists() and any(folder.glob(".tmp-*"))

    def kill(self, rank: int, when: Callable[[], Any], delay_s: float = 0.0) -> None:
        """Kill a rank of an undisturbed attempt once a condition is true."""
        pids = await_(self.ranks)
        await_(lambda: when() or self.process.poll() is not None)
        time.sleep(delay_s)
        if self.process.poll() is None:
            os.kill(pids[rank], signal.SIGKILL)
            self._killed += pids

    def restarts(self) -> list[dict[str, Any]]:
        lines = (self.path / "restarts.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, err


def test_ranks_that_are_killed_restart_the_run(trainctl: Console) -> None:
    trainctl.toy("name=undisturbed", "parallelism=ddp", *TWO)
    expected = trainctl.run_dir("undisturbed")
    words = ("parallelism=ddp", *TWO, "launch.max_restarts=4", "task.step_s=0.02")
    run = Run(trainctl, *words)
    run.kill(1, lambda: run.step() >= 5)
    run.kill(0, lambda: run.step() >= 7 and run.saves())
    status, err = run.end()
    assert status == 0, err
    assert (trace(trainctl, run.path), weights(run.path)) == (
        trace(trainctl, expected),
        weights(expected),
    )
    first, second = run.restarts()
    assert [first["attempt"], second["attempt"]] == [1, 2]
    assert f"restart 1 of 4 from step {first['from_step']}" in err
    assert 2 <= first["from_step"] <= first["reached_step"] <= second["reached_step"]
    assert json.loads((run.path / "result.json").read_text())["restarts"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero3"])
def test_twenty_kills_at_random_moments(trainctl: Console, engine: str) -> None:
    words = (f"parallelism={engine}", *TWO, "max_steps=60")
    trainctl.toy("name=undisturbed", *words)
    expected = trainctl.run_dir("undisturbed")
    run = Run(trainctl, *words, "launch.max_restarts=40", "task.step_s=0.02")
    chance = random.Random(20)
    inside = 0
    for number in range(20):
        step = 2 + int(2.5 * number)
        in_save = number % 3 == 0

        def due(step: int = step, in_save: bool = in_save) -> bool:
            return run.step() >= step and (not in_save or run.saves())

        run.kill(chance.randrange(2), due, 0.0 if in_save else chance.uniform(0.0, 0.05))
        inside += in_save and run.saves()
    status, err = run.end()
    assert status == 0, err
    assert len(run.restarts()) == 20
    assert inside > 0
    assert (trace(trainctl, run.path), weights(run.path)) == (
        trace(trainctl, expected),
        weights(expected),
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_a_stopped_rank_is_named_in_time(trainctl: Console, engine: str) -> None:
    run = Run(trainctl, f"parallelism={engine}", *TWO, "task.step_s=0.03", "launch.timeout_s=3.0")
    pids = await_(run.ranks)
    await_(lambda: run.step() >= 2)
    os.kill(pids[1], signal.SIGSTOP)
    start = time.monotonic()
    status, err = run.end()
    assert status == 12, err
    assert time.monotonic() - start < 3 + 5
    assert "rank 1 is missing" in err
    assert "stopped (SIGSTOP)" in err
