"""Resume after a kill or a signal: the same numbers as an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Console, toy_words

COMPARED = ("step", "loss", "lr", "grad_norm", "samples", "tokens", "skipped", "eval_loss")


def trace(trainctl: Console, run_dir: Path) -> list[dict[str, Any]]:
    """Return every logged number that is not a time."""
    return [{k: row.get(k) for k in COMPARED} for row in trainctl.rows(run_dir)]


def weights(run_dir: Path) -> bytes:
    return (run_dir / "export" / "weights.pt").read_bytes()


def kill_rank(run_dir: Path, number: int) -> None:
    """Send a signal to the ranks of a run."""
    for pid in json.loads((run_dir / "run.lock").read_text())["ranks"]:
        os.kill(pid, number)


def wait_for_step(trainctl: Console, step: int, name: str = "toy") -> Path:
    """Return the run directory once it has logged a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        metrics = list((trainctl.folder / "runs" / name).glob("*/metrics.jsonl"))
        if metrics and metrics[0].read_text().count("\n") >= step:
            return metrics[0].parent
        time.sleep(0.005)
    pytest.fail("the run did not get there")


@pytest.fixture
def undisturbed(trainctl: Console) -> tuple[list[dict[str, Any]], bytes]:
    """Return trace and weights of an uninterrupted run."""
    trainctl.toy("name=undisturbed")
    run_dir = trainctl.run_dir("undisturbed")
    return trace(trainctl, run_dir), weights(run_dir)


@pytest.mark.parametrize("target", ["launcher", "rank"])
def test_killed_at_any_moment(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes], target: str
) -> None:
    expected, final = undisturbed
    kill_and_resume(trainctl, target, delay=0.0, after_step=6)
    run_dir = trainctl.run_dir()
    assert trace(trainctl, run_dir) == expected
    assert weights(run_dir) == final


@pytest.mark.slow
def test_killed_at_twenty_random_moments(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes]
) -> None:
    expected, final = undisturbed
    chance = random.Random(20)
    for number in range(20):
        process = trainctl.start("run", *toy_words(f"name=toy{number}", "task.step_s=0.02"))
        time.sleep(chance.uniform(1.0, 5.0))
        process.kill()
        process.communicate()
        if not list(trainctl.folder.glob(f"runs/toy{number}/*/config.json")):
            continue  # killed before there was a run
        run_dir = trainctl.run_dir(f"toy{number}")
        while chance.random() < 0.3:  # some runs are killed again while they resume
            process = trainctl.start("resume", str(run_dir))
            time.sleep(chance.uniform(0.5, 4.0))
            process.kill()
            process.communicate()
        trainctl("resume", str(run_dir))
        assert trace(trainctl, run_dir) == expected
        assert weights(run_dir) == final


def kill_and_resume(trainctl: Console, target: str, *, delay: float, after_step: int) -> None:
    process = trainctl.start("run", *toy_words("task.step_s=0.03"))
    run_dir = wait_for_step(trainctl, after_step)
    time.sleep(delay)
    if target == "launcher":
        process.kill()
    else:
        kill_rank(run_dir, signal.SIGKILL)
    process.communicate()
    assert process.returncode == (-9 if target == "launcher" else 137)
    trainctl("resume", str(run_dir))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)
def test_a_signal_finishes_the_step_and_saves_it(
    trainctl: Console,
    undisturbed: tuple[list[dict[str, Any]], bytes],
    number: signal.Signals,
    status: int,
) -> None:
    expected, final = undisturbed
    process = trainctl.start("run", *toy_words("task.step_s=0.05", "checkpoint.every_steps=null"))
    run_dir = wait_for_step(trainctl, 3)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == status
    done = trainctl.rows(run_dir)[-1]["step"]
    assert f"after step {done}" in err
    assert f"trainctl resume runs/toy/{run_dir.name}" in (out + err).splitlines()[-1]
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    trainctl("resume", str(run_dir))
    assert trace(trainctl, run_dir) == expected
    assert weights(run_dir) == final


def test_a_second_ctrl_c_leaves_at_once(trainctl: Console) -> None:
    process = trainctl.start("run", *toy_words("task.step_s=5"))
    deadline = time.monotonic() + 60
    while not list(trainctl.folder.glob("runs/toy/*/logs/rank-0.log")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(2.5)  # the first step has begun
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert time.monotonic() - start < 4


def test_resuming_a_finished_run_changes_nothing(trainctl: Console) -> None:
    trainctl.toy()
    run_dir = trainctl.run_dir()
    before = trace(trainctl, run_dir), weights(run_dir)
    trainctl("resume", str(run_dir))
    assert (trace(trainctl, run_dir), weights(run_dir)) == before


def test_a_finished_run_is_extended(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes]
) -> None:
    trainctl.toy("name=long", "max_steps=20", "scheduler=constant")
    trainctl.toy("max_steps=12", "scheduler=constant")
    run_dir = trainctl.run_dir()
    out, _ = trainctl("resume", str(run_dir), "max_steps=20")
    assert "max_steps: 12 -> 20" in out
    steps = {row["step"]: row["loss"] for row in trace(trainctl, run_dir)}
    long = {row["step"]: row["loss"] for row in trace(trainctl, trainctl.run_dir("long"))}
    assert steps == long


def test_a_new_learning_rate_takes_effect(trainctl: Console) -> None:
    trainctl.toy("max_steps=8", "scheduler=constant")
    run_dir = trainctl.run_dir()
    trainctl("resume", str(run_dir), "max_steps=12", "optimizer.lr=0.003")
    rates = {row["step"]: row["lr"] for row in trainctl.rows(run_dir)}
    assert [rates[step] for step in (8, 9, 12)] == [0.01, 0.003, 0.003]


def test_a_change_of_the_result_requires_allow(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    stored = (run_dir / "config.json").read_text()
    _, err = trainctl("resume", str(run_dir), "max_steps=8", "seed=5", status=2)
    assert "seed" in err
    assert "--allow seed" in err
    _, err = trainctl("resume", str(run_dir), "model.width=9", "--allow", "model", status=2)
    assert "model.width" in err
    assert (run_dir / "config.json").read_text() == stored
    trainctl("resume", str(run_dir), "max_steps=8", "seed=5", "--allow", "seed")


def test_a_change_that_the_checkpoint_does_not_fit_is_reverted(trainctl: Console) -> None:
    trainctl.toy()
    run_dir = trainctl.run_dir()
    written = ("config.json", "overrides.txt", "provenance.json")
    before = [(run_dir / name).read_text() for name in written]
    change = ("precision=bf16_pure", "max_steps=16", "--allow", "precision")
    out, err = trainctl("resume", str(run_dir), *change, status=14)
    assert "another model or optimizer" in err
    assert "settings are put back" in out
    assert [(run_dir / name).read_text() for name in written] == before
    trainctl("resume", str(run_dir), "max_steps=16")
    assert trainctl.rows(run_dir)[-1]["step"] == 16


def test_two_resumes_at_the_same_instant(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    words = ["resume", str(run_dir), "max_steps=40", "checkpoint.every_steps=null"]
    both = [trainctl.start(*words), trainctl.start(*words)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 3]
    assert any("in use by another process" in err for err in errors)
    assert len(trainctl.rows(run_dir)) == 40


def test_a_run_that_never_saved_starts_again(trainctl: Console) -> None:
    process = trainctl.start("run", *toy_words("task.step_s=0.05", "checkpoint.every_steps=null"))
    run_dir = wait_for_step(trainctl, 2)
    process.kill()
    process.communicate()
    trainctl("resume", str(run_dir))
    assert [row["step"] for row in trainctl.rows(run_dir)] == list(range(1, 13))
