"""As test_crash, on two ranks: one of them is killed at every action of a save.

The other rank must end the save with an error and not hang; the next start, on one, two or three
ranks, must find the old or the new checkpoint, bit for bit, and must be able to save.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch.distributed as dist
from typing_extensions import Buffer, override

from launcher.checkpoint import _manifest
from launcher.checkpoint._storage import Storage
from launcher.contracts import Snapshot
from launcher.errors import CheckpointError
from tests.checkpoint import sharded
from tests.distributed import end_of_ranks, run_on_ranks


def small(step: int) -> Snapshot:
    """A snapshot with a few tensors that all ranks hold, and a few of which each has a part."""
    state = sharded.engine(step, dist.get_rank(), dist.get_world_size())
    few = ("model.float32.", "model.uint8.")
    return sharded.snapshot(
        step, state={name: value for name, value in state.items() if name.startswith(few)}
    )


class Killer(Storage):
    """Dies before its nth action, or in the middle of it where it is a write."""

    def __init__(self, last: int | None, *, torn: bool = False) -> None:
        self.actions: list[str] = []
        self._last = last
        self._torn = torn

    @override
    def act(self, action: str, path: Path) -> None:
        # The random end of a draft's name says nothing.
        self.actions.append(f"{action} {path.name.rpartition('-')[0] or path.name}")
        if len(self.actions) == self._last and not self._torn:
            os.kill(os.getpid(), signal.SIGKILL)

    @override
    def write(self, descriptor: int, path: Path, data: Buffer) -> int:
        view = memoryview(data)
        if len(self.actions) + 1 == self._last and self._torn:
            os.write(descriptor, view[: len(view) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(descriptor, path, view)


def save(run: Path, step: int, rank: int, last: int | None, torn: bool) -> list[str]:
    """Save, and die on one rank; this rank's actions."""
    mine = dist.get_rank() == rank
    storage = Killer(last if mine else None, torn=torn)
    try:
        sharded.store(run, storage, keep=1).save(small(step))
    except CheckpointError as error:
        # The world is broken: leave without its last barrier.
        print(f"refused: {error}", flush=True)
        os._exit(3)
    return storage.actions


def resume(run: Path) -> int:
    """Load on any number of ranks and save again; the step that was found."""
    store = sharded.store(run, keep=1)
    live = small(0).engine
    loaded = store.load(live)
    assert loaded is not None
    assert sharded.same_engines(live, small(loaded.step).engine)
    store.save(small(7))
    again = store.load(small(0).engine)
    assert again is not None
    assert again.step == 7
    return loaded.step


def kill(run: Path, rank: int, number: int, *, torn: bool) -> int:
    """Kill a rank at an action of a save of step 2 over step 1; the step that is found then."""
    where = f"rank {rank} killed at its action {number}, torn={torn}"
    ended = end_of_ranks(save, run, 2, rank, number, torn)
    other = ended[1 - rank]
    assert ended[rank].status == -signal.SIGKILL, where
    if other.status != 3:
        # Killed after the checkpoint was published and the other rank was notified.
        assert (run / "checkpoints/step-00000002").is_dir(), where
    else:
        assert f"rank {rank} did not answer" in other.log, where
    published = sorted(run.glob("checkpoints/step-*"))
    assert published, where
    assert not [fault for path in published for fault in _manifest.verify(path)], where
    if rank == 1:
        # Rank 0 lives and removes the draft.
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"], where
    ranks = number % 3 + 1
    (found, *others) = run_on_ranks(resume, run, ranks=ranks)
    assert others == [found] * (ranks - 1), where
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000007"], where
    return int(found)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A run on two ranks with a checkpoint of step 1."""
    run = tmp_path / "first" / "run-1"
    run.mkdir(parents=True)
    run_on_ranks(save, run, 1, 0, None, False)
    return run


def copy(first: Path, where: Path) -> Path:
    shutil.copytree(first, where / first.name)
    return where / first.name


def actions(first: Path, tmp_path: Path) -> list[list[str]]:
    return run_on_ranks(save, copy(first, tmp_path / "whole"), 2, 0, None, False)


POINTS = [
    (0, "create .metadata.tmp", 1),
    (0, "rename .tmp-step-00000002", 1),
    (0, "fsync_folder checkpoints", 2),
    (1, "create __1_0.distcp", 1),
    (1, "close __1_0.distcp", 1),
]


@pytest.mark.parametrize(("rank", "action", "step"), POINTS)
def test_a_rank_is_killed(first: Path, tmp_path: Path, rank: int, action: str, step: int) -> None:
    number = actions(first, tmp_path)[rank].index(action) + 1
    assert kill(copy(first, tmp_path / "killed"), rank, number, torn=False) == step


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_killed_at_every_action(first: Path, tmp_path: Path, rank: int) -> None:
    done = actions(first, tmp_path)[rank]
    assert len(done) > (30 if rank == 0 else 5)
    found = []
    for number, action in enumerate(done, start=1):
        for torn in (False, True) if action.startswith("write") else (False,):
            where = tmp_path / f"killed-{number}-{torn}"
            found.append(kill(copy(first, where), rank, number, torn=torn))
            shutil.rmtree(where)
    assert found == sorted(found)
    assert set(found) == ({1, 2} if rank == 0 else {1})
