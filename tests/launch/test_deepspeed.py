"""launch=deepspeed on one machine without a GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.launch import _deepspeed_agent
from launcher.launch._environment import LAUNCHER_PID
from launcher.launch._join import _node
from launcher.run_dir import RunDir
from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import wait_for_step

pytest.importorskip("deepspeed")

TWO = ("parallelism=ddp", "launch=deepspeed", "launch.processes=2")


@pytest.mark.slow
def test_sigterm_reaches_the_ranks_and_their_state_is_saved(trainctl_as_installed: Console) -> None:
    trainctl = trainctl_as_installed
    words = toy_words(*TWO, "task.step_s=0.05", "max_steps=1000")
    process = trainctl.start("run", *words)
    # deepspeed's two processes, and then the ranks, import torch one after the other.
    run_dir = wait_for_step(trainctl, 5, seconds=240)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "SIGTERM received" in err
    assert "resume with: trainctl resume runs/toy/" in err
    assert [
        json.loads((run_dir / f"result/rank-{rank}.json").read_text())["exit_status"]
        for rank in (0, 1)
    ] == [75, 75]


def test_the_status_of_a_rank_is_that_of_the_agent(tmp_path: Path) -> None:
    script = tmp_path / "rank"
    script.write_text('#!/bin/sh\n[ "$RANK" = 1 ] && exit 13\nexec sleep 60\n')
    script.chmod(0o755)
    flags = ["--num_gpus=2", "--no_python", "--no_local_rank", "--log_level=error"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", _deepspeed_agent.__name__, *flags, str(script)],
        env=Console(tmp_path).environment | {"DS_ACCELERATOR": "cpu"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 13


@pytest.mark.parametrize("name", ["deepspeed", "torchrun"])
def test_a_program_does_not_start_itself_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process has the environment of no world: `join` must not start the program once more."""
    config = load_config([f"launch={name}", "launch.device=cpu"]).config
    with _node(config, None, None).opened(RunDir(tmp_path)) as opened:
        assert opened.command is not None
    monkeypatch.setenv(LAUNCHER_PID, "1")
    with _node(config, None, None).opened(RunDir(tmp_path)) as opened:
        assert opened.command is None
        assert opened.are_ranks


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("launch.nodes=2",), 2, "one `HOST slots=N` a line, because launch.nodes is 2"),
        (("launch.include=a", "launch.exclude=b"), 2, "include or exclude, but not both"),
        (("launch.hostfile=missing",), 3, "launch.hostfile=missing does not exist"),
    ],
)
def test_what_cannot_be_started(
    trainctl: Console, words: tuple[str, ...], status: int, message: str
) -> None:
    _, err = trainctl.toy("launch=deepspeed", *words, "--dry-run", status=status)
    assert message in err


def test_words_after_two_hyphens_go_to_the_launcher(trainctl: Console) -> None:
    out, _ = trainctl("run", *toy_words(*TWO), "--dry-run", "--", "--force_multi", "--x=a b")
    assert " --force_multi '--x=a b' " in out
    out, _ = trainctl("run", *toy_words("launch=slurm"), "--dry-run", "--", "--exclusive")
    assert "#SBATCH --exclusive\n" in out
    _, err = trainctl("run", *toy_words(), "--", "--exclusive", status=2)
    assert "launch.flags" in err
