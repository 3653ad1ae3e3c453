from __future__ import annotations

import errno
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from typing_extensions import override

from launcher.checkpoint import _store
from launcher.checkpoint._storage import Storage
from launcher.errors import CheckpointError
from launcher.training.failures import closing
from tests.checkpoint.conftest import plain

if TYPE_CHECKING:
    from tests.checkpoint.conftest import Bench


class Gate(Storage):
    """Lets no fsync through until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    @override
    def act(self, action: str, path: Path) -> None:
        if action == "fsync":
            self.reached.set()
            assert self.open.wait(60)


class Full(Storage):
    """A disk without room for tensors, as long as `full`."""

    full = True

    @override
    def act(self, action: str, path: Path) -> None:
        if self.full and action == "write" and path.suffix == ".distcp":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


def wait_until_done(store: object) -> None:
    writing = getattr(store, "_writing", None)
    assert writing is None or writing.wait(60)


def test_training_goes_on_while_the_save_is_written(bench: Bench) -> None:
    gate = Gate()
    store = bench.store(gate, asynchronous=True)
    snapshot = bench.snapshot(1)
    store.save(snapshot)
    assert gate.reached.wait(60)
    for tensor in [*map(plain, snapshot.engine.values()), *snapshot.rng.values()]:
        tensor.zero_()
    store.poll()
    assert bench.names()[0].startswith(".tmp-step-00000001-")
    gate.open.set()
    store.wait()
    assert bench.same(bench.load(), bench.snapshot(1))


def test_a_second_save_waits_for_the_first(bench: Bench) -> None:
    gate = Gate()
    store = bench.store(gate, asynchronous=True)
    store.save(bench.snapshot(1))
    threading.Timer(0.3, gate.open.set).start()
    start = time.monotonic()
    store.save(bench.snapshot(2))
    assert time.monotonic() - start > 0.2
    store.close()
    assert bench.names() == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("verb", ["save", "wait", "load", "close"])
def test_waiting_is_bounded(bench: Bench, verb: str) -> None:
    gate = Gate()
    store = bench.store(gate, asynchronous=True, timeout_s=0.2)
    store.save(bench.snapshot(1))
    verbs = {
        "save": lambda: store.save(bench.snapshot(2)),
        "wait": store.wait,
        "load": lambda: store.load(bench.snapshot(0).engine),
        "close": store.close,
    }
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"still being written after .*checkpoint\.timeout_s"):
        verbs[verb]()
    assert time.monotonic() - start < 5
    gate.open.set()
    wait_until_done(store)
    store.close()
    assert bench.same(bench.load(), bench.snapshot(1))


def test_after_an_error_a_close_waits_less(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_AFTER_ERROR_S", 0.1)
    gate = Gate()
    store = bench.store(gate, asynchronous=True, timeout_s=600)
    store.save(bench.snapshot(1))

    def failing_run() -> None:
        with closing(store.close):
            raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        failing_run()
    assert bench.names()[0].startswith(".tmp-step-00000001-")
    gate.open.set()
    wait_until_done(store)
    store.close()
    assert bench.same(bench.load(), bench.snapshot(1))


@pytest.mark.parametrize("verb", ["poll", "wait", "save", "close"])
def test_a_failure_in_the_background_surfaces_once(bench: Bench, verb: str) -> None:
    bench.save(1)
    disk = Full()
    store = bench.store(disk, asynchronous=True)
    store.save(bench.snapshot(2))
    wait_until_done(store)
    verbs = {
        "poll": store.poll,
        "wait": store.wait,
        "save": lambda: store.save(bench.snapshot(3)),
        "close": store.close,
    }
    with pytest.raises(CheckpointError, match="No space left on device") as raised:
        verbs[verb]()
    assert "bytes are free" in str(raised.value)
    needed = sum(plain(value).nbytes for value in bench.snapshot(2).engine.values()) + 50
    assert f"{needed} are needed" in str(raised.value)
    assert "__0_0.distcp" in str(raised.value)
    assert bench.names() == ["step-00000001"]
    store.poll()
    disk.full = False
    store.save(bench.snapshot(4))
    store.close()
    assert bench.same(bench.load(), bench.snapshot(4))


def test_a_bug_in_the_background_is_not_dressed_up(bench: Bench) -> None:
    class Buggy(Storage):
        @override
        def act(self, action: str, path: Path) -> None:
            if action == "fsync":
                raise ZeroDivisionError("ours")

    store = bench.store(Buggy(), asynchronous=True)
    store.save(bench.snapshot(1))
    with pytest.raises(ZeroDivisionError, match="ours"):
        store.wait()
    assert bench.names() == []


def test_the_copies_are_made_in_the_same_memory_again(bench: Bench) -> None:
    store = bench.store(asynchronous=True)
    store.save(bench.snapshot(1))
    store.wait()
    places = {name: t.data_ptr() for name, t in store._staging._buffers.items()}
    store.save(bench.snapshot(2))
    store.wait()
    assert places == {name: t.data_ptr() for name, t in store._staging._buffers.items()}
    bigger = bench.snapshot(3, numel=40)
    store.save(bigger)
    store.close()
    assert bench.same(bench.store().load(bench.blank(bigger.engine)), bigger)


def test_saving_in_the_foreground_is_done_when_it_returns(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    store = bench.store(asynchronous=False)
    with caplog.at_level(logging.INFO, "trainctl.checkpoint"):
        store.save(bench.snapshot(1))
    assert bench.same(bench.load(), bench.snapshot(1))
    assert "saved step 1" in caplog.text
    with pytest.raises(CheckpointError, match="No space left"):
        bench.store(Full()).save(bench.snapshot(2))


@pytest.mark.gpu
def test_tensors_on_a_device_are_staged_in_pinned_memory(bench: Bench) -> None:
    store = bench.store(asynchronous=True)
    engine = {name: plain(value).cuda() for name, value in bench.snapshot(1).engine.items()}
    copies = store._staging.copy(engine)
    assert all(plain(value).is_pinned() for value in copies.values())
    assert all(torch.equal(plain(copies[name]), tensor.cpu()) for name, tensor in engine.items())
