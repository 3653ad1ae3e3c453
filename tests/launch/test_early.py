"""A rank that is started before its config is known."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from launcher.errors import LaunchError, Preempted
from launcher.launch._early import WORKER, EarlyRank
from launcher.launch._environment import LAUNCHER_PID, common_to_ranks, without_rank
from launcher.launch._lock import locked
from launcher.launch._signals import signals_end_launch
from launcher.run_dir import RunDir
from tests.conftest import Console, toy_words

PROGRAM = [sys.executable, "-P", "-m", WORKER]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 5
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def trainctl(trainctl_as_installed: Console) -> Console:
    """The command; forked processes would have imported the real torch already."""
    return trainctl_as_installed


@pytest.fixture
def torch_that_sleeps(trainctl: Console) -> Path:
    """A torch for the early rank that prints, and whose import never ends; who imports it."""
    (trainctl.folder / "site" / "torch.py").write_text(
        "import os, pathlib, time\n"
        "print('torch is imported', flush=True)\n"
        f"path = pathlib.Path({str(trainctl.folder)!r})\n"
        "(path / 'new').write_text(str(os.getpid()))\n"
        "(path / 'new').rename(path / 'pid')\n"
        "time.sleep(300)\n"
    )
    return trainctl.folder / "pid"


def importer(path: Path) -> int:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)],
)
def test_it_dies_with_its_launcher(
    trainctl: Console, torch_that_sleeps: Path, number: signal.Signals, status: int
) -> None:
    process = trainctl.start("run", *toy_words())
    pid = importer(torch_that_sleeps)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert_ends(pid)


def test_resume_starts_it_before_it_verifies_the_run(
    trainctl: Console, torch_that_sleeps: Path
) -> None:
    run = RunDir(trainctl.folder / "run")
    run.path.mkdir()
    run.config.write_text("{}")
    run.command.touch()
    # Nobody writes into it: resume waits where it reads the checksum of the config.
    os.mkfifo(run.record)
    process = trainctl.start("resume", str(run.path))
    pid = importer(torch_that_sleeps)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == Preempted.exit_status, err
    assert_ends(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_library_cannot_catch_the_signal(number: signal.Signals) -> None:
    with (
        pytest.raises(Preempted, match=f"^{number.name} received while no rank was running"),
        signals_end_launch(),
        suppress(Exception),  # as Hydra does while it looks for plugins
    ):
        os.kill(os.getpid(), number)


def test_it_does_not_outlive_an_error_and_prints_nothing(
    trainctl: Console, torch_that_sleeps: Path
) -> None:
    out, err = trainctl("run", *toy_words("optimizer.lr=-1"), status=2)
    assert out == ""
    assert "optimizer.lr" in err
    assert "imported" not in err
    if torch_that_sleeps.exists():
        assert gone(int(torch_that_sleeps.read_text()))


@pytest.mark.parametrize("words", [["check"], ["run", "--dry-run"], ["run", "--help"]])
def test_what_starts_nothing_starts_no_rank(
    trainctl: Console, torch_that_sleeps: Path, words: list[str]
) -> None:
    trainctl(*words, *toy_words())
    assert not torch_that_sleeps.exists()


def environment() -> dict[str, str]:
    return {**without_rank(), **common_to_ranks()}


def test_it_becomes_the_rank_of_a_run(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with EarlyRank() as early, locked(run_dir) as lock:
        process = early.take(
            [*PROGRAM, str(tmp_path)],
            environment(),
            variables={LAUNCHER_PID: str(os.getpid())},
            folder=str(Path.cwd()),
            descriptors=lock,
        )
    assert process is not None
    # It holds the lock by descriptors that it was given later.
    with pytest.raises(LaunchError, match="in use"), locked(run_dir):
        pass
    assert process.process.wait() == LaunchError.exit_status
    recorded = json.loads(run_dir.rank_result(0).read_text())
    assert recorded["message"] == f"cannot read {run_dir.config}: No such file or directory"
    with locked(run_dir):
        pass


@pytest.mark.parametrize("other", ["program", "environment", "folder"])
def test_it_is_not_taken_for_what_it_is_not(tmp_path: Path, other: str) -> None:
    with EarlyRank() as early:
        started = early._process
        assert started is not None
        taken = early.take(
            [*(["torchrun"] if other == "program" else []), *PROGRAM, str(tmp_path)],
            {**environment(), **({"OMP_NUM_THREADS": "7"} if other == "environment" else {})},
            variables={},
            folder=str(tmp_path) if other == "folder" else None,
            descriptors=[],
        )
        assert taken is None
    assert gone(started.pid)


def interrupted_in_its_clean_up() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise AttributeError("half-made")


def test_a_signal_ends_a_launch_where_a_library_fails_in_its_clean_up() -> None:
    with (
        pytest.raises(Preempted, match="SIGTERM received while no rank was running"),
        signals_end_launch(),
    ):
        interrupted_in_its_clean_up()
