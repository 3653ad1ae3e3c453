"""A save is stopped at every one of its actions, by death and by error; nothing good is lost.

A child process is forked for each action: it starts the save again from the same folder and dies,
by SIGKILL, before the action or, where the action is a write, when half of it is done. The next
process must find the old or the new checkpoint, bit for bit, and must be able to save.

One scene is stopped at every action, the others at every third: the actions are those of the same
code. Slow tests stop each scene at all of them.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from typing_extensions import Buffer, override

# The heavy import comes before the forks, which then start in no time.
from launcher.checkpoint import _dcp, _manifest
from launcher.checkpoint._storage import Storage
from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from launcher.contracts import Snapshot
    from tests.checkpoint.conftest import Bench

CONFIG = '{"seed": 0}\n'
OTHER_CONFIG = '{"seed": 1}\n'


class Recorder(Storage):
    """Counts the actions, and stops nothing."""

    def __init__(self) -> None:
        self.actions: list[tuple[str, Path]] = []

    @override
    def act(self, action: str, path: Path) -> None:
        self.actions.append((action, path))


class Killer(Recorder):
    """Dies at the nth action: before it, or in the middle of a write."""

    def __init__(self, last: int, *, torn: bool) -> None:
        super().__init__()
        self.last = last
        self.torn = torn

    @override
    def act(self, action: str, path: Path) -> None:
        super().act(action, path)
        if len(self.actions) == self.last and not self.torn:
            os.kill(os.getpid(), signal.SIGKILL)

    @override
    def write(self, descriptor: int, path: Path, data: Buffer) -> int:
        view = memoryview(data)
        if len(self.actions) + 1 == self.last and self.torn:
            os.write(descriptor, view[: len(view) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(descriptor, path, view)


class Broken(Recorder):
    """Fails with an OSError from the nth action on, `times` times."""

    def __init__(self, first: int, code: int, times: int) -> None:
        super().__init__()
        self.failing = range(first, first + times)
        self.code = code

    @override
    def act(self, action: str, path: Path) -> None:
        super().act(action, path)
        if len(self.actions) in self.failing:
            raise OSError(self.code, os.strerror(self.code), str(path))


class Scene:
    """Something that is done to a folder, and what may be found after it was stopped anywhere.

    Args:
        prepare: Makes the folder as it is before.
        act: What is stopped.
        outcomes: What `load` may then give.
        whole: Whether every published checkpoint is whole at all times.
    """

    def __init__(
        self,
        prepare: Callable[[Bench], None],
        act: Callable[[Bench, Storage], None],
        outcomes: Callable[[Bench], list[Snapshot | None]],
        *,
        whole: bool = True,
    ) -> None:
        self.whole = whole
        self.prepare = prepare
        self.act = act
        self.outcomes = outcomes


def save(step: int, *, keep: int = 2, config: str = CONFIG) -> Callable[[Bench, Storage], None]:
    def act(bench: Bench, storage: Storage) -> None:
        bench.store(storage, keep=keep).save(bench.snapshot(step, config=config))

    return act


def resume(bench: Bench, storage: Storage) -> None:
    assert bench.store(storage).load(bench.snapshot(0).engine) is not None


def damage(bench: Bench, step: int) -> None:
    path = bench.step(step) / "train_state.json"
    path.write_bytes(path.read_bytes().replace(b"samples", b"sampled"))


def save_and_damage(bench: Bench) -> None:
    bench.save(1, 2)
    damage(bench, 2)


def leave_leftovers(bench: Bench) -> None:
    bench.save(1, 2, 3)
    bench.step(1).rename(bench.folder / ".trash-step-00000001-00aa")
    bench.step(3).rename(bench.folder / ".replaced-step-00000003-00bb")
    half = bench.folder / ".tmp-step-00000004-00cc" / _dcp.STATE
    half.mkdir(parents=True)
    (half / "__0_0.distcp").write_bytes(b"half")


def either(*steps: int) -> Callable[[Bench], list[Snapshot | None]]:
    return lambda bench: [bench.snapshot(step) if step else None for step in steps]


SCENES = {
    "first save": Scene(lambda bench: None, save(1), either(0, 1)),
    "second save": Scene(lambda bench: bench.save(1), save(2), either(1, 2)),
    "save with retention": Scene(lambda bench: bench.save(1, 2), save(3), either(2, 3)),
    "save with keep=1": Scene(lambda bench: bench.save(1), save(2, keep=1), either(1, 2)),
    "same step again": Scene(lambda bench: bench.save(1, 2), save(2), either(2)),
    "same step, other config": Scene(
        lambda bench: bench.save(1, 2),
        save(2, config=OTHER_CONFIG),
        lambda bench: [bench.snapshot(2), bench.snapshot(2, config=OTHER_CONFIG)],
    ),
    "same step over damage": Scene(save_and_damage, save(2), either(1, 2), whole=False),
    "fall back": Scene(save_and_damage, resume, either(1), whole=False),
    "tidy": Scene(leave_leftovers, resume, either(3)),
}


def in_child(act: Callable[[], None]) -> int:
    """Do something in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            # Threads do not survive a fork, torch's pool among them.
            torch.set_num_threads(1)
            act()
        except BaseException:  # noqa: BLE001 - nothing may get back into pytest
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def error_of(act: Callable[[], None]) -> str | None:
    """The error with which something ended, if it did."""
    try:
        act()
    except CheckpointError as error:
        return str(error)
    return None


def copies(bench: Bench, scene: Scene, tmp_path: Path) -> Iterator[Bench]:
    """Fresh copies of the prepared run, for ever; each lasts until the next is asked for."""
    scene.prepare(bench)
    for number in itertools.count():
        yield bench.copy(tmp_path / f"copy-{number}")
        shutil.rmtree(tmp_path / f"copy-{number}")


def assert_going_on(bench: Bench, scene: Scene, where: str) -> None:
    """The next process finds what it may find, saves, and leaves no leftovers."""
    store = bench.store(keep=2)
    if scene.whole:
        published = [bench.folder / name for name in bench.names()]
        assert not [fault for path in published for fault in _manifest.verify(path)], where
    found = store.load(bench.snapshot(0).engine)
    assert any(bench.same(found, outcome) for outcome in scene.outcomes(bench)), where
    store.save(bench.snapshot(7))
    assert bench.same(bench.load(), bench.snapshot(7)), where
    assert not [name for name in bench.names() if name.startswith(".")], where


EVERY = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["third", "every"]
)


def stopped_at(recorder: Recorder, name: str, *, every: bool) -> list[tuple[int, str, Path]]:
    """Number, name and path of the actions at which a scene is stopped."""
    listed = [(number, *each) for number, each in enumerate(recorder.actions, start=1)]
    if every or name == "save with retention":
        return listed
    return listed[list(SCENES).index(name) % 3 :: 3]


@EVERY
@pytest.mark.parametrize("name", SCENES)
def test_killed_at_every_action(bench: Bench, tmp_path: Path, name: str, every: bool) -> None:
    scene = SCENES[name]
    runs = copies(bench, scene, tmp_path)
    recorder = Recorder()
    scene.act(next(runs), recorder)
    assert recorder.actions
    for number, action, path in stopped_at(recorder, name, every=every):
        for torn in (False, True) if action == "write" else (False,):
            run = next(runs)
            killer = Killer(number, torn=torn)
            status = in_child(partial(scene.act, run, killer))
            where = f"killed at action {number}, {action} {path.name}, torn={torn}"
            assert os.WIFSIGNALED(status), where
            assert_going_on(run, scene, where)


@pytest.mark.parametrize(
    ("code", "times"), [(errno.EIO, 1), (errno.ENOSPC, 10**6)], ids=["EIO once", "ENOSPC for ever"]
)
@EVERY
@pytest.mark.parametrize("name", [name for name in SCENES if "save" in name or "config" in name])
def test_failing_at_every_action(
    bench: Bench, tmp_path: Path, name: str, code: int, times: int, every: bool
) -> None:
    scene = SCENES[name]
    runs = copies(bench, scene, tmp_path)
    recorder = Recorder()
    scene.act(next(runs), recorder)
    new = scene.outcomes(bench)[-1]
    for number, action, path in stopped_at(recorder, name, every=every):
        run = next(runs)
        where = f"failed at action {number}, {action} {path.name}"
        message = error_of(partial(scene.act, run, Broken(number, code, times)))
        if message is None:
            assert run.same(run.load(), new), where
        else:
            assert os.strerror(code) in message, where
            assert str(run.folder) in message, where
            if times == 1:
                assert not [entry for entry in run.names() if entry.startswith(".")], where
                # What was refused is not there, not even after an fsync that failed.
                assert not run.same(run.load(), new), where
        assert_going_on(run, scene, where)
