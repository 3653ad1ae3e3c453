"""Saves and loads on several ranks: any sharding into any other, and failures that all learn of."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from typing_extensions import Buffer, override

from launcher.checkpoint import _manifest
from launcher.checkpoint._index import Index
from launcher.checkpoint._storage import Storage
from launcher.contracts import EngineState
from launcher.errors import CheckpointError
from tests.checkpoint import sharded
from tests.distributed import end_of_ranks, run_on_ranks


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run-1"
    path.mkdir()
    return path


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def save(run: Path, steps: Sequence[int], *, asynchronous: bool = False) -> None:
    store = sharded.store(run, asynchronous=asynchronous)
    for step in steps:
        store.save(sharded.snapshot(step))
    store.close()


def load(run: Path, turn: int = 0) -> tuple[int, bool, bool]:
    """Load into tensors of another step; the step, and if engine and generators are as saved."""
    live = sharded.snapshot(0, turn=turn).engine
    loaded = sharded.store(run).load(live)
    assert loaded is not None
    assert all(loaded.engine[name] is live[name] for name in live)
    expected = sharded.snapshot(loaded.step, turn=turn)
    same_rng = loaded.rng.keys() == expected.rng.keys() and all(
        torch.equal(loaded.rng[name], tensor) for name, tensor in expected.rng.items()
    )
    return loaded.step, sharded.same_engines(loaded.engine, expected.engine), same_rng


def load_in_every_layout(run: Path) -> list[tuple[int, bool, bool]]:
    return [load(run, turn) for turn in range(len(sharded.LAYOUTS))]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_sharding_on_any_ranks_into_any_other(run: Path, ranks: int) -> None:
    run_on_ranks(save, run, [5], ranks=ranks)
    written = sorted(path.name for path in (run / "checkpoints/step-00000005/state").iterdir())
    assert written == [".metadata", *(f"__{rank}_0.distcp" for rank in range(ranks))]
    manifest = _manifest.peek(run / "checkpoints" / "step-00000005")
    assert manifest is not None
    assert manifest.world_size == ranks
    for others in (1, 2, 3):
        loads = run_on_ranks(load_in_every_layout, run, ranks=others)
        for rank, found in enumerate(loads):
            # A rank that did not exist when the checkpoint was saved has no generators in it.
            assert found == [(5, True, rank < ranks)] * len(sharded.LAYOUTS)


def test_torch_reads_what_several_ranks_wrote(run: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    run_on_ranks(save, run, [5], ranks=3)
    dcp_to_torch_save(run / "checkpoints/step-00000005/state", tmp_path / "all.pt")
    tensors: dict[str, Any] = torch.load(tmp_path / "all.pt", weights_only=True)
    whole = sharded.whole_tensors(5)
    places = range(len(sharded.LAYOUTS))
    model = {f"model.{name}.{place}": tensor for name, tensor in whole.items() for place in places}
    rng = {f"rng.rank{rank}.torch" for rank in range(3)}
    assert tensors.keys() == model.keys() | rng
    assert all(sharded.bits(tensors[name]) == sharded.bits(model[name]) for name in model)


def save_replicated(run: Path) -> tuple[int, int]:
    """Bytes that this rank has staged and that it has written."""
    store = sharded.store(run, asynchronous=True)
    state = {f"model.{index}": torch.zeros(1000) for index in range(20)}
    store.save(sharded.snapshot(1, state=state))
    staged = sum(tensor.nbytes for tensor in store._staging._buffers.values())
    store.wait()
    file = run / "checkpoints/step-00000001/state" / f"__{dist.get_rank()}_0.distcp"
    return staged, file.stat().st_size


def test_each_rank_copies_and_writes_its_part_of_what_all_hold(run: Path) -> None:
    found = run_on_ranks(save_replicated, run)
    for staged, written in found:
        assert 40_000 <= staged < 40_100
        assert written < 60_000


def save_while_reducing(run: Path) -> float:
    """Save in the background, again and again, during the collectives of the main thread."""
    store = sharded.store(run, asynchronous=True, keep=2)
    total = torch.zeros(1)
    for step in range(1, 9):
        store.save(sharded.snapshot(step))
        for _ in range(50):
            one = torch.ones(1)
            dist.all_reduce(one)
            total += one
        store.poll()
    store.close()
    return total.item()


def test_saves_in_the_background_do_not_disturb_collectives(run: Path) -> None:
    assert run_on_ranks(save_while_reducing, run) == [800, 800]
    assert names(run) == ["step-00000007", "step-00000008"]
    assert run_on_ranks(load, run) == [(8, True, True)] * 2


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


def load_with_warnings(run: Path) -> tuple[int, bool, bool, str]:
    messages: list[str] = []

    class Keeping(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keeping(logging.WARNING)
    logging.getLogger("trainctl.checkpoint").addHandler(handler)
    return *load(run), "\n".join(messages)


def test_damage_is_found_by_whichever_rank_and_all_fall_back(run: Path) -> None:
    run_on_ranks(save, run, [1, 2], ranks=3)
    damaged = run / "checkpoints/step-00000002/state/__2_0.distcp"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    loads = run_on_ranks(load_with_warnings, run)
    assert [found[:3] for found in loads] == [(1, True, True)] * 2
    assert "__2_0.distcp" in loads[0][3]
    assert loads[1][3] == ""
    assert names(run) == ["step-00000001", "step-00000002.corrupt"]


def load_another_model_on_rank_1(run: Path) -> tuple[str, bool]:
    """The error, and whether the live tensors are as they were."""
    live, before = (sharded.engine(0, dist.get_rank(), dist.get_world_size()) for _ in range(2))
    if dist.get_rank() == 1:
        live["model.more"] = before["model.more"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as raised:
        sharded.store(run).load(live)
    return str(raised.value), sharded.same_engines(live, before)


def test_another_model_on_one_rank_is_refused_by_all_before_anything_is_read(run: Path) -> None:
    run_on_ranks(save, run, [1])
    (first, unchanged), other = run_on_ranks(load_another_model_on_rank_1, run)
    assert (first, unchanged) == other
    assert unchanged
    assert "another model" in first
    assert "model.more" in first


def save_with_a_gap(run: Path) -> str:
    state = sharded.engine(1, dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 1:
        del state[f"model.float32.{sharded.LAYOUTS.index('rows')}"]
    with pytest.raises((ValueError, CheckpointError)) as raised:
        sharded.store(run).save(sharded.snapshot(1, state=state))
    return str(raised.value)


def test_a_tensor_of_which_no_rank_has_a_part_is_not_saved(run: Path) -> None:
    texts = run_on_ranks(save_with_a_gap, run)
    assert all("model.float32.2" in text for text in texts)
    assert names(run) == []


def test_a_rank_opens_no_file_that_holds_nothing_of_its_own(run: Path) -> None:
    run_on_ranks(save, run, [1])
    folder = run / "checkpoints/step-00000001"
    manifest = _manifest.peek(folder)
    assert manifest is not None
    index = Index(folder, {name: file.size for name, file in manifest.files.items()})
    (folder / "state/__1_0.distcp").unlink()
    rows = f".{sharded.LAYOUTS.index('rows')}"

    def rows_of_rank_0(step: int) -> EngineState:
        state = sharded.engine(step, rank=0, ranks=2)
        return {name: value for name, value in state.items() if name.endswith(rows)}

    live = rows_of_rank_0(0)
    index.fill(live)
    assert sharded.same_engines(live, rows_of_rank_0(1))


def peak_of_a_load(path: Path) -> int:
    """MiB by which a load of 128 MiB raises the process's peak memory."""
    live: EngineState = {f"model.{index}": torch.ones(4 << 20) for index in range(8)}
    store = sharded.store(path)
    store.save(sharded.snapshot(1, state=live))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    assert store.load(live) is not None
    return peak_mib() - before


def peak_mib() -> int:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) >> 10


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_load_holds_one_saved_box_at_a_time(run: Path) -> None:
    (peak,) = run_on_ranks(peak_of_a_load, run, ranks=1)
    assert peak < 28
