"""Saves on several ranks that fail on one: all learn of it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from typing_extensions import Buffer, override

from launcher.checkpoint._storage import Storage
from launcher.errors import CheckpointError
from tests.checkpoint import sharded
from tests.checkpoint.sharded import load, names
from tests.distributed import end_of_ranks, run_on_ranks


class Breaking(Storage):
    """Fails at an action on the files of one ending, as long as `broken`."""

    def __init__(self, action: str, ending: str, error: Exception) -> None:
        self.broken = True
        self._where = action, ending
        self._error = error

    @override
    def act(self, action: str, path: Path) -> None:
        if self.broken and action == self._where[0] and path.name.endswith(self._where[1]):
            raise self._error


def save_on_breaking(
    run: Path, rank: int, action: str, ending: str, error: Exception, asynchronous: bool
) -> str:
    """Save three times; at the second a rank's disk breaks. What that save ended with."""
    disk = Breaking(action, ending, error)
    disk.broken = False
    store = sharded.store(run, disk, asynchronous=asynchronous)
    store.save(sharded.snapshot(1))
    store.wait()
    dist.barrier()
    disk.broken = dist.get_rank() == rank
    found = ""
    try:
        store.save(sharded.snapshot(2))
        store.wait()
    except (CheckpointError, ZeroDivisionError) as raised:
        found = f"{type(raised).__name__}: {raised}"
    dist.barrier()
    assert names(run) == ["step-00000001"]
    dist.barrier()
    disk.broken = False
    store.save(sharded.snapshot(3))
    store.close()
    assert load(run) == (3, True, True)
    return found


FULL = OSError(errno.ENOSPC, "No space left on device", "file")
BREAKS = {
    "a full disk on rank 1": (1, "write", ".distcp", FULL),
    "rank 1's file cannot be made": (1, "create", ".distcp", FULL),
    "a full disk on rank 0": (0, "write", ".distcp", FULL),
    "no folder": (0, "mkdir", "state", FULL),
    "no manifest": (0, "fsync", "manifest.json", FULL),
    "no rename": (0, "rename", "", FULL),
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", BREAKS)
def test_a_failure_on_one_rank_is_the_same_error_on_all(
    run: Path, name: str, *, asynchronous: bool
) -> None:
    texts = run_on_ranks(save_on_breaking, run, *BREAKS[name], asynchronous)
    assert len(set(texts)) == 1
    assert texts[0].startswith("CheckpointError: ")
    assert "No space left on device" in texts[0]
    assert "cannot save step 2" in texts[0]
    if BREAKS[name][0] == 1:
        assert "rank 1: " in texts[0]
    assert names(run) == ["step-00000001", "step-00000003"]


def test_a_bug_on_one_rank_is_raised_there_and_named_elsewhere(run: Path) -> None:
    bug = ZeroDivisionError("planted")
    texts = run_on_ranks(save_on_breaking, run, 1, "write", ".distcp", bug, False)
    assert texts[1] == "ZeroDivisionError: planted"
    assert texts[0] == "CheckpointError: rank 1: ZeroDivisionError: planted"


def open_a_store(run: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        sharded.store(run)
    return str(raised.value)


def test_a_folder_that_cannot_be_made_is_the_same_error_on_all(tmp_path: Path) -> None:
    (tmp_path / "run-1").write_text("a file")
    first, second = run_on_ranks(open_a_store, tmp_path / "run-1")
    assert first == second
    assert "cannot be used for checkpoints: Not a directory" in first


def save_the_same_step_again(run: Path) -> tuple[bool, bool, bool]:
    store = sharded.store(run)
    before = store.has_any()
    store.save(sharded.snapshot(1))
    inode = (run / "checkpoints/step-00000001").stat().st_ino
    store.save(sharded.snapshot(1))
    return before, store.has_any(), (run / "checkpoints/step-00000001").stat().st_ino == inode


def test_a_state_that_is_published_already_is_not_written_again(run: Path) -> None:
    assert run_on_ranks(save_the_same_step_again, run) == [(False, True, True)] * 2
    assert names(run) == ["step-00000001"]


class Corrupting(Storage):
    """Writes other bytes than it was given."""

    @override
    def write(self, descriptor: int, path: Path, data: Buffer) -> int:
        return super().write(descriptor, path, bytes(len(bytes(data))))


def save_on_corrupting(run: Path) -> str:
    store = sharded.store(run, Corrupting() if dist.get_rank() == 1 else None)
    with pytest.raises(CheckpointError) as raised:
        store.save(sharded.snapshot(2))
    return str(raised.value)


def test_every_rank_reads_back_its_own_files(run: Path) -> None:
    texts = run_on_ranks(save_on_corrupting, run)
    assert texts[0] == texts[1]
    assert "rank 1: " in texts[0]
    assert "__1_0.distcp" in texts[0]
    assert "does not read back" in texts[0]
    assert names(run) == []


class Stuck(Storage):
    """Lets no fsync through until a file is there."""

    def __init__(self, key: Path) -> None:
        self._key = key

    @override
    def act(self, action: str, path: Path) -> None:
        while action == "fsync" and not self._key.exists():
            time.sleep(0.01)


def save_on_stuck(run: Path) -> str:
    """Save with a rank whose disk is stuck until rank 0 has given up."""
    key = run / "key"
    store = sharded.store(run, Stuck(key) if dist.get_rank() == 1 else None, timeout_s=2)
    with pytest.raises(CheckpointError) as raised:
        store.save(sharded.snapshot(2))
    key.touch()
    # The ranks may not be in the same round any more: there is no other one.
    with pytest.raises(CheckpointError, match="did not answer"):
        store.save(sharded.snapshot(3))
    return str(raised.value)


def test_a_rank_that_does_not_report_in_time_is_named(run: Path) -> None:
    texts = run_on_ranks(save_on_stuck, run, ranks=3)
    assert "rank 1 did not answer rank 0" in texts[0]
    assert "checkpoint.timeout_s is 2 s" in texts[0]
    assert "see the log of rank 0" in texts[2]
    assert names(run) == []


class Fatal(Storage):
    """Ends the process at its first fsync."""

    @override
    def act(self, action: str, path: Path) -> None:
        if action == "fsync":
            os._exit(9)


def save_on_fatal(run: Path) -> None:
    store = sharded.store(run, Fatal() if dist.get_rank() == 1 else None)
    for step in (2, 3):
        with pytest.raises(CheckpointError) as raised:
            store.save(sharded.snapshot(step))
        print(f"step {step}: {raised.value}", flush=True)
    os._exit(3)


def test_a_rank_that_has_died_is_named_on_all_others(run: Path) -> None:
    ended = end_of_ranks(save_on_fatal, run, ranks=3)
    assert [end.status for end in ended] == [3, 9, 3]
    assert ended[0].log == ended[2].log
    assert ended[0].log.count("rank 1 did not answer rank 0") == 2
    assert names(run) == []
