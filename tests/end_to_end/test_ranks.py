"""Runs on several ranks, as a user starts, stops, kills and resumes them."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import trace, wait_for_step

BATCH = ("accumulation.micro_batch_size=1", "accumulation.samples_per_step=6")
# A rate that does not depend on the length, and nothing drawn that depends on the ranks.
STEADY = (*BATCH, "scheduler=constant", "model.dropout=0", "optimizer=sgd")


def ranks(number: int) -> tuple[str, str]:
    return f"parallelism={'ddp' if number > 1 else 'single'}", f"launch.processes={number}"


def pids_of(run_dir: Path) -> list[int]:
    """Processes that hold a run's path on their command line as ranks do, in order of rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"launcher.launch._worker" in words and str(run_dir).encode() in words:
            rank = next((v[5:] for v in environment if v.startswith(b"RANK=")), b"0")
            found[int(rank)] = int(process.name)
    return [found[rank] for rank in sorted(found)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(run_dir / "export" / "weights.pt")
    return loaded


def same_weights(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


def test_a_run_moves_between_engines_and_numbers_of_ranks(trainctl: Console) -> None:
    trainctl.toy("name=undisturbed", *STEADY, *ranks(1))
    expected = trainctl.rows(trainctl.run_dir("undisturbed"))
    trainctl.toy(*STEADY, *ranks(2), "max_steps=3")
    run_dir = trainctl.run_dir()
    for number, until in ((1, 6), (3, 9), (2, 12)):
        trainctl("resume", str(run_dir), *ranks(number), f"max_steps={until}")
    rows = trainctl.rows(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert losses(rows) == pytest.approx(losses(expected), rel=1e-5)
    assert [row["samples"] for row in rows] == [row["samples"] for row in expected]
    final = rows[-1]["eval_loss"], expected[-1]["eval_loss"]
    assert final[0] == pytest.approx(final[1], rel=1e-5)


def test_epochs_that_do_not_divide_lose_no_sample(trainctl: Console) -> None:
    """50 samples in windows of 6: the last one holds 2, of which a third rank gets none."""
    for number in (1, 3):
        words = ("max_steps=null", "max_epochs=1", "eval_every_steps=null", f"name=epoch{number}")
        trainctl.toy(*STEADY, *ranks(number), *words)
    alone, three = (trainctl.rows(trainctl.run_dir(f"epoch{number}")) for number in (1, 3))
    assert alone[-1]["samples"] == three[-1]["samples"] == 50
    assert losses(three) == pytest.approx(losses(alone), rel=1e-5)
    assert three[-1]["eval_loss"] == pytest.approx(alone[-1]["eval_loss"], rel=1e-6)


SIGNALS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130, signal.SIGHUP: 75}


def stop_and_resume(
    trainctl: Console, target: str, number: signal.Signals, name: str, delay_s: float
) -> Path:
    """Stop a run of two ranks by a signal to the launcher, one rank or all, and finish it."""
    words = toy_words(*BATCH, *ranks(2), f"name={name}", "task.step_s=0.08")
    process = trainctl.start("run", *words, "checkpoint.every_steps=null")
    metrics = trainctl.folder / "runs" / name
    run_dir = wait_for_step(trainctl, 1, metrics)
    time.sleep(delay_s)
    pids = pids_of(run_dir)
    targets = {"launcher": [process.pid], "rank 0": pids[:1], "rank 1": pids[1:], "all": pids}
    for pid in targets[target]:
        os.kill(pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == SIGNALS[number], f"{target} {number}\n{out}\n{err}"
    assert "stopped after step" in err
    [checkpoint] = (run_dir / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{trainctl.rows(run_dir)[-1]['step']:08d}"
    trainctl("resume", str(run_dir))
    return run_dir


@pytest.fixture
def undisturbed(trainctl: Console) -> Path:
    trainctl.toy("name=undisturbed", *BATCH, *ranks(2))
    return trainctl.run_dir("undisturbed")


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("launcher", signal.SIGTERM),
        ("rank 1", signal.SIGTERM),
        ("all", signal.SIGUSR1),
        ("launcher", signal.SIGINT),
        ("launcher", signal.SIGHUP),
    ],
)
def test_a_signal_stops_all_ranks_after_the_same_step(
    trainctl: Console, undisturbed: Path, target: str, number: signal.Signals
) -> None:
    run_dir = stop_and_resume(trainctl, target, number, "toy", 0.05)
    assert trace(trainctl, run_dir) == trace(trainctl, undisturbed)
    assert same_weights(run_dir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["launcher", "rank 0", "rank 1", "all"])
def test_fifty_signals_at_random_moments(trainctl: Console, undisturbed: Path, target: str) -> None:
    chance = random.Random(50)
    for attempt in range(50):
        run_dir = stop_and_resume(
            trainctl, target, signal.SIGTERM, f"toy{attempt}", chance.uniform(0, 0.15)
        )
        assert trace(trainctl, run_dir) == trace(trainctl, undisturbed)
        assert same_weights(run_dir, undisturbed)


def test_dropout_of_two_ranks_resumes_bitwise(trainctl: Console) -> None:
    trainctl.toy(*BATCH, *ranks(2), "max_steps=7", "scheduler=constant", "name=constant")
    trainctl.toy(*BATCH, *ranks(2), "max_steps=4", "scheduler=constant")
    run_dir = trainctl.run_dir()
    trainctl("resume", str(run_dir), "max_steps=7")
    whole = trainctl.run_dir("constant")
    assert losses(trainctl.rows(run_dir)) == losses(trainctl.rows(whole))
    assert same_weights(run_dir, whole)


def test_a_data_error_on_one_rank_is_the_run_s_error(trainctl: Console) -> None:
    """Sample 20 is read by one rank only; its loss is not a number."""
    _, err = trainctl.toy(*STEADY, *ranks(2), "task.poison=20", "max_steps=60", status=10)
    assert "the loss is nan" in err
    assert "made-up/20" in err
