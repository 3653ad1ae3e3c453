"""One run directory, one run."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import run_dir as run_dirs
from launcher.errors import LaunchError
from launcher.launch import _lock
from launcher.launch._lock import locked
from launcher.run_dir import RunDir


def test_a_held_directory_names_its_holder(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    held = f'"pid": {os.getpid()}'
    with locked(run_dir), pytest.raises(LaunchError, match=held), locked(run_dir):
        pass
    with locked(run_dir):
        pass


def test_a_dead_holders_ranks_are_waited_for(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    # A child holds the lock, and the file names nobody who lives: the rank of a killed launcher.
    lines = [
        "import fcntl, sys, time",
        "file = open(sys.argv[1], 'w')",
        "fcntl.flock(file, fcntl.LOCK_EX)",
        "print('held', flush=True)",
        "time.sleep(1)",
    ]
    code = "\n".join(lines)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir.lock)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    start = time.monotonic()
    with locked(run_dir):
        assert time.monotonic() - start > 0.3
    child.communicate()


def test_a_rank_that_never_dies_is_given_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lock, "GRACE_S", 0.2)
    run_dir = RunDir(tmp_path)
    with run_dir.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LaunchError, match="in use"), locked(run_dir):
            pass


def test_inherited_descriptors_hold_the_lock(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with locked(run_dir) as descriptors:
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=descriptors
        )
    # The launcher is still alive, so a second run is refused at once and not made to wait.
    with pytest.raises(LaunchError, match="in use"), locked(run_dir):
        pass
    child.wait()
    with locked(run_dir):
        assert json.loads(run_dir.lock.read_text())["pid"] == os.getpid()


def test_a_deleted_file_unlocks_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with locked(run_dir):
        run_dir.lock.unlink()
        holder = subprocess.run(
            [
                sys.executable,
                "-c",
                f"""
from launcher.launch import _lock
from launcher.run_dir import RunDir
from pathlib import Path
_lock.GRACE_S = 0.1
with _lock.locked(RunDir(Path({str(tmp_path)!r}))):
    print("in")
""",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert holder.returncode == 1
    assert "in use" in holder.stderr


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_the_lock_file_is_a_file_of_the_run(tmp_path: Path, make: Callable[[Path], None]) -> None:
    run_dir = RunDir(tmp_path)
    make(run_dir.lock)
    refused = pytest.raises(LaunchError, match=r"run.lock must be a .*file, but is .*; remove it")
    with refused, locked(run_dir):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_directories_are_never_shared(tmp_path: Path) -> None:
    made = {run_dirs.create(tmp_path, "x").path for _ in range(200)}
    assert len(made) == 200


def test_steps_are_read_from_names() -> None:
    run_dir = RunDir(Path("/r"))
    assert run_dir.checkpoint(12).name == "step-00000012"
    assert run_dirs.step_of(run_dir.checkpoint(123456789)) == 123456789
    assert run_dirs.step_of(Path("step-00000012.corrupt")) is None
    assert run_dirs.step_of(Path(".tmp-step-00000012-ab")) is None


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    run_dirs.write_atomically(path, "one")
    run_dirs.write_atomically(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
