"""Two ranks under `trainctl run parallelism=ddp`: signals, hangs, failures."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import trace, wait_for_step, weights

TWO = ("parallelism=ddp", "launch.processes=2")


def ranks(run_dir: Path) -> list[int]:
    """Process ids of the ranks."""
    pids: list[int] = json.loads((run_dir / "run.lock").read_text())["ranks"]
    assert len(pids) == 2
    return pids


def recorded(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads((run_dir / f"result/rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], bytes]:
    """Return trace and weights of an uninterrupted run of two ranks."""
    trainctl = Console.in_folder(tmp_path_factory.mktemp("undisturbed"))
    trainctl.toy(*TWO)
    run_dir = trainctl.run_dir()
    return trace(trainctl, run_dir), weights(run_dir)


def stop_and_resume(trainctl: Console, target: str, name: str) -> Path:
    """Stop a run by a signal; all ranks must stop after the same step. Resume it."""
    words = toy_words(*TWO, f"name={name}", "task.step_s=0.03", "checkpoint.every_steps=null")
    process = trainctl.start("run", *words)
    run_dir = wait_for_step(trainctl, 2, name)
    number = {"launcher": 0, "rank 0": 1, "rank 1": 2}
    pids = [process.pid, *ranks(run_dir)]
    for pid in pids if target == "all" else [pids[number[target]]]:
        os.kill(pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    done = trainctl.rows(run_dir)[-1]["step"]
    assert done < 12
    assert f"SIGTERM received: stopped after step {done}" in err
    for record in recorded(run_dir):
        assert record["message"] == f"SIGTERM received: stopped after step {done}"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    trainctl("resume", str(run_dir))
    return run_dir


@pytest.mark.parametrize("target", ["launcher", "rank 1"])
def test_a_signal_stops_all_ranks_after_one_step(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes], target: str
) -> None:
    run_dir = stop_and_resume(trainctl, target, "toy")
    assert (trace(trainctl, run_dir), weights(run_dir)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("target", ["launcher", "rank 0", "rank 1", "all"])
def test_a_signal_stops_all_ranks_in_fifty_tries(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes], target: str
) -> None:
    for number in range(50):
        run_dir = stop_and_resume(trainctl, target, f"toy{number}")
        assert (trace(trainctl, run_dir), weights(run_dir)) == undisturbed


def test_a_stopped_rank_is_found_and_killed(trainctl: Console) -> None:
    process = trainctl.start("run", *toy_words(*TWO, "task.step_s=0.03", "launch.timeout_s=3.0"))
    run_dir = wait_for_step(trainctl, 2)
    pids = ranks(run_dir)
    os.kill(pids[1], signal.SIGSTOP)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 12, err
    assert time.monotonic() - start < 3 + 5
    assert "rank 1 is missing" in err
    assert "stopped (SIGSTOP)" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_poisoned_sample_of_any_rank_is_named(trainctl: Console) -> None:
    _, err = trainctl.toy(*TWO, "task.poison=17", status=10)
    assert "made-up/17" in err
    assert "Traceback" not in err


def test_auto_finds_a_micro_batch_for_two_ranks(trainctl: Console) -> None:
    words = [word for word in toy_words(*TWO) if not word.startswith("accumulation")]
    auto = ("accumulation=auto", "accumulation.samples_per_step=4", "max_steps=2")
    out, _ = trainctl("run", *words, *auto)
    assert "micro-batch 2 fits" in out
    assert {p.name for p in trainctl.run_dir().glob("trials/*/rank-*.json")} == {
        "rank-0.json",
        "rank-1.json",
    }


def test_ddp_on_one_rank_is_single(trainctl: Console) -> None:
    trainctl.toy("name=alone")
    trainctl.toy("parallelism=ddp", "name=one")
    assert weights(trainctl.run_dir("one")) == weights(trainctl.run_dir("alone"))


def test_a_finished_run_that_is_resumed_on_fewer_ranks_keeps_its_scores(trainctl: Console) -> None:
    trainctl.toy(*TWO)
    run_dir = trainctl.run_dir()
    expected = json.loads((run_dir / "result.json").read_text())
    trainctl("resume", str(run_dir), "parallelism=single", "launch.processes=1")
    found = json.loads((run_dir / "result.json").read_text())
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-5)
    same = ("status", "step", "references", "sample", "stopped", "export")
    assert [found[key] for key in same] == [expected[key] for key in same]
