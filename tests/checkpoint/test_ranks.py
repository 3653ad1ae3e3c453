"""Saves and loads on several ranks: any sharding into any other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from typing_extensions import override

from launcher.checkpoint import _manifest
from launcher.checkpoint._index import Index
from launcher.contracts import EngineState
from launcher.errors import CheckpointError
from tests.checkpoint import sharded
from tests.checkpoint.sharded import load, names
from tests.distributed import run_on_ranks


def save(run: Path, steps: Sequence[int], *, asynchronous: bool = False) -> None:
    store = sharded.store(run, asynchronous=asynchronous)
    for step in steps:
        store.save(sharded.snapshot(step))
    store.close()


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
