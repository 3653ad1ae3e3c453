"""Several ranks under one launcher: their exit, and the error that is reported."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import (
    DataError,
    Hang,
    Interrupted,
    LaunchError,
    NonFinite,
    Preempted,
    RankFailed,
    TrainctlError,
)
from launcher.launch._environment import LAUNCHER_PID, without_rank
from launcher.launch._lock import locked
from launcher.launch._supervisor import Supervisor
from launcher.run_dir import RunDir
from tests.launch.standin import ROOT, launch, launch_forked


def result(path: Path) -> Any:
    return json.loads((path / "result.json").read_text(), parse_constant=pytest.fail)


def pids(path: Path, ranks: int) -> list[int]:
    """The ranks' process ids, once all have started."""
    files = [path / f"pid-{rank}" for rank in range(ranks)]
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    """Return True if a process has ended, also if its parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("ranks", [1, 2])
def test_completed(tmp_path: Path, ranks: int) -> None:
    assert launch(tmp_path, "complete", ranks).step == 3
    expected = {"step": 3, "scores": {"eval_loss": None}, "references": {}, "best": {}}
    expected |= {"sample": None, "stopped": None}
    found = result(tmp_path)
    assert found == found | {"status": "completed", "exit_status": 0, "export": None, **expected}
    for rank in range(ranks):
        recorded = json.loads((tmp_path / f"result/rank-{rank}.json").read_text())
        assert recorded == recorded | {"rank": rank, **expected}


def test_the_error_of_any_rank_is_the_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^corpus.jsonl:7: must be a string, but is 3$") as caught:
        launch(tmp_path, "data_error", 3)
    assert caught.value.exit_status == 13
    assert result(tmp_path)["error"] == "DataError"
    assert all(gone(pid) for pid in pids(tmp_path, 1))


def test_a_cause_comes_before_its_consequences(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match="the loss is nan") as caught:
        launch(tmp_path, "lost_peer_first")
    assert caught.value.indices == (3, 17)


def test_a_cause_comes_before_a_save_that_it_ended(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus\.jsonl:7"):
        launch_forked(tmp_path, "lost_in_save_first")


def test_a_timeout_comes_before_the_connections_that_it_closed(tmp_path: Path) -> None:
    with pytest.raises(Hang, match="rank 1 waited too long"):
        launch(tmp_path, "timed_out_last")


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="rank 1 was killed by SIGKILL") as caught:
        launch(tmp_path, "killed")
    assert caught.value.exit_status == 137


def test_a_bug_prints_whole_and_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RankFailed, match="rank 1 failed: KeyError: 'weight'") as caught:
        launch(tmp_path, "bug")
    assert caught.value.exit_status == 1
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1
    assert err.endswith("KeyError: 'weight'\n")


@pytest.mark.parametrize(
    ("number", "error", "name"),
    [
        ("SIGTERM", Preempted, "SIGTERM"),
        ("SIGUSR1", Preempted, "SIGUSR1"),
        ("SIGHUP", Preempted, "SIGHUP"),
        ("SIGINT", Preempted, "SIGINT"),
    ],
)
def test_every_rank_gets_the_launchers_signal(
    tmp_path: Path, number: str, error: type[TrainctlError], name: str
) -> None:
    with pytest.raises(error, match=f"{name} received"):
        launch(tmp_path, number)
    for rank in (0, 1):
        recorded = json.loads((tmp_path / f"result/rank-{rank}.json").read_text())
        assert recorded["message"].startswith(f"{name} received")
    assert result(tmp_path)["status"] == "stopped"


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="twice"):
        launch(tmp_path, "ctrl_c_twice")
    assert all(gone(pid) for pid in pids(tmp_path, 2))


def assert_found_in_time(path: Path, timeout_s: float) -> None:
    """A hang is the result of a run within `launch.timeout_s` and 5 s of the last finished step.

    By the times of the run's files. Of the 5 s, the launcher uses two looks at the heartbeats (a
    tenth of the timeout each, 1 s at most) and up to 2 s in which the ranks write their stacks.
    """
    last = max(file.stat().st_mtime for file in path.glob("step-*"))
    assert (path / "result.json").stat().st_mtime - last <= timeout_s + 5


def test_a_stopped_rank_is_a_hang(tmp_path: Path) -> None:
    with pytest.raises(Hang) as caught:
        launch(tmp_path, "stopped", timeout_s=1.0)
    assert caught.value.missing == (1,)
    text = str(caught.value)
    assert "rank 1 is missing" in text
    assert "rank 0: step after step 4, in await_ (" in text
    assert "rank 1: step after step 4, stopped (SIGSTOP)" in text
    assert "in await_" in (tmp_path / "logs/rank-0.log").read_text()
    assert "cannot write its stacks" in (tmp_path / "logs/rank-1.log").read_text()
    assert result(tmp_path)["exit_status"] == 12
    assert_found_in_time(tmp_path, 1.0)
    assert all(gone(pid) for pid in pids(tmp_path, 2))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_others_wait_for_in_a_collective_is_named(tmp_path: Path, ranks: int) -> None:
    with pytest.raises(Hang, match=rf"launch.timeout_s=1 s; rank {ranks - 1} is missing") as caught:
        launch(tmp_path, "sleeps", ranks, timeout_s=1.0)
    assert caught.value.missing == (ranks - 1,)
    assert caught.value.exit_status == 12
    assert str(caught.value).count("waits in all_reduce (") == ranks - 1
    assert str(caught.value).count("in await_ (") == 1
    logs = [(tmp_path / f"logs/rank-{rank}.log").read_text() for rank in range(ranks)]
    assert ["in all_reduce" in log for log in logs] == [True, False][-ranks:]
    assert "in await_" in logs[-1]
    assert_found_in_time(tmp_path, 1.0)
    assert all(gone(pid) for pid in pids(tmp_path, ranks))


def test_whoever_computes_before_the_first_step_does_not_hang(tmp_path: Path) -> None:
    assert launch(tmp_path, "builds", timeout_s=1.0).step == 3


def test_logs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(LaunchError, match=r"cannot write .*logs/rank-\d.log: ") as caught:
        launch(tmp_path, "complete", 1)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(LaunchError, match=r"cannot write .*logs/rank-1.log: "):
        launch(tmp_path, "complete", 2)


def test_ranks_reduce(tmp_path: Path) -> None:
    launch_forked(tmp_path, "reduces")


def test_a_mismatch_of_collectives_is_named(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="called different collectives"):
        launch_forked(tmp_path, "aborts")


def start_launcher(path: Path, ranks: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "tests/launch/standin.py"), "launch", str(path), "train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, str(ranks)], env=environment, stderr=subprocess.DEVNULL)


def kill(path: Path, target: str, delay_s: float) -> None:
    """Kill the launcher or a rank; nothing is left within five seconds, and the lock is free."""
    path.mkdir()
    process = start_launcher(path, 2)
    ranks = pids(path, 2)
    time.sleep(delay_s)
    os.kill(process.pid if target == "launcher" else ranks[target == "rank 1"], signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not (all(map(gone, ranks)) and process.poll() is not None):
        assert time.monotonic() < deadline, f"{target}: {[gone(pid) for pid in ranks]}"
        time.sleep(0.01)
    with locked(RunDir(path)):
        pass


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_ctrl_z_stops_launcher_and_ranks_and_fg_continues_them(tmp_path: Path) -> None:
    process = start_launcher(tmp_path, 2)
    everyone = [process.pid, *pids(tmp_path, 2)]
    process.send_signal(signal.SIGTSTP)
    deadline = time.monotonic() + 60
    while not all(state(pid) == "T" for pid in everyone):
        assert time.monotonic() < deadline, [state(pid) for pid in everyone]
        time.sleep(0.01)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert result(tmp_path)["error"] == "Preempted"
    assert all(map(gone, everyone))


def test_a_hang_after_a_long_ctrl_z_names_it(tmp_path: Path) -> None:
    supervisor = Supervisor(RunDir(tmp_path), None, suspended_s=45.2)
    hang = Hang("rank 1 waited too long for another rank (Timed out)", [0])
    named = supervisor.explained(hang, timeout_s=25.0)
    assert str(named) == (
        f"{hang}; the run was stopped (Ctrl-Z) for 45 s, and a collective fails after "
        "launch.timeout_s=25 s, stopped or not"
    )
    assert named.missing == (0,)
    assert supervisor.explained(hang, timeout_s=60.0) is hang


@pytest.mark.parametrize("target", ["launcher", "rank 0", "rank 1"])
def test_nothing_is_left_when_one_is_killed(tmp_path: Path, target: str) -> None:
    kill(tmp_path / "run", target, 0.1)


@pytest.mark.slow
def test_nothing_is_left_in_a_hundred_tries(tmp_path: Path) -> None:
    chance = random.Random(7)
    for number in range(100):
        target = ("launcher", "rank 0", "rank 1")[number % 3]
        kill(tmp_path / str(number), target, chance.uniform(0, 0.2))


def test_ranks_hold_the_lock_of_a_deleted_file(tmp_path: Path) -> None:
    process = start_launcher(tmp_path, 2)
    pids(tmp_path, 2)
    (tmp_path / "run.lock").unlink()
    code = (
        "import sys, pathlib\n"
        "from launcher.launch import _lock\n"
        "from launcher.run_dir import RunDir\n"
        "_lock.GRACE_S = 0.2\nwith _lock.locked(RunDir(pathlib.Path(sys.argv[1]))): pass"
    )
    second = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    process.terminate()
    process.wait()
    assert f"{LaunchError.__name__}: {tmp_path} is in use" in second.stderr


def test_ranks_survive_torchruns_agent_as_their_parent(tmp_path: Path) -> None:
    """Also if the launcher, which is this process, has started the agent."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), LAUNCHER_PID: str(os.getpid())}
    subprocess.run(
        [*torchrun, str(ROOT / "tests/launch/standin.py"), str(tmp_path), "reduces"],
        env=environment,
        check=True,
        capture_output=True,
    )
    for rank in (0, 1):
        assert json.loads((tmp_path / f"result/rank-{rank}.json").read_text())["step"] == 3


def test_only_the_variables_of_a_rank_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_SCRATCH", "RANKING", "GROUP_NAME"):
        monkeypatch.setenv(name, "kept")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    left = without_rank()
    assert {"LOCAL_SCRATCH", "RANKING", "GROUP_NAME"} <= left.keys()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"} & left.keys()
    assert "TORCHELASTIC_RUN_ID" not in left
