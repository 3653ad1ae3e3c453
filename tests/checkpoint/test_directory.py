from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from launcher.checkpoint import _manifest
from launcher.checkpoint.directory import Directory
from launcher.contracts import LocalShard, Shard, World
from launcher.errors import CheckpointError
from launcher.run_dir import RunDir
from tests.checkpoint.conftest import Bench, plain
from tests.fork_server import call
from tests.kernel_limit import memory_limit

CONF = Path(__file__).parents[2] / "conf" / "checkpoint"
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def preset(**changes: object) -> dict[str, object]:
    return {**yaml.safe_load((CONF / "directory.yaml").read_text("utf-8")), **changes}


def option(**changes: object) -> Directory:
    return Directory.model_validate_json(json.dumps(preset(**changes)))


def test_the_preset_validates_and_builds(bench: Bench) -> None:
    store = option().build(bench.run_dir, World(0, 1, 0, "cpu"))
    store.save(bench.snapshot(3))
    store.close()
    assert bench.same(store.load(bench.snapshot(0).engine), bench.snapshot(3))


@pytest.mark.parametrize(
    "changes",
    [{"keep": 0}, {"keep": None}, {"timeout_s": 0}, {"every_steps": 0}, {"asynchronous": 1}],
)
def test_values_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        option(**changes)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_round_trip_of_every_dtype_is_bitwise(bench: Bench, *, asynchronous: bool) -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (96,), generator=random).to(torch.uint8)
    engine: dict[str, Tensor | LocalShard] = {
        f"model.{dtype}": noise.view(dtype).reshape(2, -1, 3)
        for dtype in DTYPES
        if dtype != torch.bool
    }
    engine["model.torch.bool"] = noise > 127
    engine["model.nan"] = torch.tensor([float("nan"), float("inf"), -0.0])
    engine["model.scalar"] = torch.tensor(1.5)
    engine["model.empty"] = torch.empty(0, 3)
    engine["model.parameter"] = torch.nn.Parameter(torch.ones(3))
    engine["model.transposed"] = torch.arange(6.0).reshape(2, 3).T
    engine["model.slice"] = torch.arange(20.0)[4:9]
    engine["model.conj"] = torch.tensor([1 + 2j]).conj()
    engine["model.negative"] = torch.tensor([1 + 2j]).conj().imag
    engine["model.tied"] = engine["model.slice"]
    snapshot = dataclasses.replace(bench.snapshot(1), engine=engine)
    store = bench.store(asynchronous=asynchronous)
    store.save(snapshot)
    store.close()
    live = bench.blank(engine)
    assert not bench.same_tensors(live, engine)
    assert bench.same(bench.store().load(live), snapshot)


def test_a_load_fills_the_live_tensors(bench: Bench) -> None:
    bench.save(1)
    live = dict(bench.snapshot(0).engine)
    live["model.weight"] = torch.nn.Parameter(torch.zeros(3, 24))[:, ::2]
    loaded = bench.store().load(live)
    assert loaded is not None
    assert all(loaded.engine[name] is live[name] for name in live)
    assert bench.same_tensors(live, bench.snapshot(1).engine)


def test_the_number_formats_own_state_is_returned_and_the_live_one_left_alone(bench: Bench) -> None:
    snapshot = bench.snapshot(1)
    formats = {"precision.scale": torch.tensor(8.0), "precision.steps": torch.tensor(3)}
    bench.store().save(dataclasses.replace(snapshot, engine={**snapshot.engine, **formats}))
    live = {**bench.snapshot(0).engine, "precision.scale": torch.tensor(2.0)}
    loaded = bench.store().load(live)
    assert loaded is not None
    assert bench.same_tensors(loaded.engine, {**snapshot.engine, **formats})
    assert plain(live["precision.scale"]).item() == 2


def test_nothing_to_load_is_none(bench: Bench) -> None:
    assert bench.load() is None


def test_the_newest_is_loaded(bench: Bench) -> None:
    bench.save(9, 10, 100_000_000)
    assert bench.same(bench.load(), bench.snapshot(100_000_000))


def test_loading_leaves_the_global_generator_alone(bench: Bench) -> None:
    before = torch.get_rng_state()
    bench.save(1)
    bench.load()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_manifest_says_what_it_is_of(bench: Bench) -> None:
    bench.save(1)
    store = bench.store()
    store.load(bench.snapshot(0).engine)
    store.save(bench.snapshot(2))
    manifest = _manifest.peek(bench.step(2))
    assert manifest is not None
    assert (manifest.run_id, manifest.step, manifest.parent_step) == ("run-1", 2, 1)
    assert (manifest.world_size, manifest.data_fingerprint) == (1, "data")
    assert manifest.versions["torch"] == torch.__version__
    assert json.loads((bench.step(2) / "manifest.json").read_text("utf-8"))["step"] == 2


def test_equal_states_make_equal_files(bench: Bench, tmp_path: Path) -> None:
    other = bench.copy(tmp_path / "elsewhere")
    bench.save(1)
    other.save(1)
    for path in bench.step(1).rglob("*"):
        if path.is_file():
            twin = other.step(1) / path.relative_to(bench.step(1))
            assert path.read_bytes() == twin.read_bytes(), path.name


def test_torch_reads_what_we_wrote(bench: Bench, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    bench.save(1)
    dcp_to_torch_save(bench.step(1) / "state", tmp_path / "all.pt")
    tensors: dict[str, Any] = torch.load(tmp_path / "all.pt", weights_only=True)
    engine = {name: t for name, t in tensors.items() if not name.startswith("rng.")}
    assert bench.same_tensors(engine, bench.snapshot(1).engine)
    assert tensors.keys() - engine.keys() == {"rng.rank0.torch"}


def test_a_state_that_is_there_already_is_not_written_again(bench: Bench) -> None:
    bench.save(1)
    inode = bench.step(1).stat().st_ino
    bench.save(1)
    assert bench.step(1).stat().st_ino == inode


def test_leftovers_are_removed_with_a_word(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.save(1)
    outside = bench.run_dir.path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    for name in (".tmp-step-00000002-00aa", ".trash-step-00000001-00bb"):
        (bench.folder / name / "state").mkdir(parents=True)
        (bench.folder / name / "link").symlink_to(outside)
    (bench.folder / ".mine").mkdir()
    with caplog.at_level(logging.WARNING, "trainctl.checkpoint"):
        bench.store()
    assert bench.names() == [".mine", "step-00000001"]
    assert (outside / "precious").exists()
    assert all(name in caplog.text for name in (".tmp-step-00000002-00aa", ".trash-step-00000001"))


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be used for checkpoints: Not a directory"):
        option().build(RunDir(tmp_path / "run"), World(0, 1, 0, "cpu"))


LIVE = {
    "missing": ("model.new", torch.zeros(2)),
    "shape": ("model.weight", torch.zeros(3, 13)),
    "dtype": ("model.weight", torch.zeros(3, 12, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", LIVE)
def test_another_model_is_an_error_and_no_reason_to_fall_back(bench: Bench, name: str) -> None:
    bench.save(1, 2)
    key, tensor = LIVE[name]
    with pytest.raises(CheckpointError, match="another model") as raised:
        bench.store().load({**bench.snapshot(0).engine, key: tensor})
    assert key in str(raised.value)
    assert str(bench.step(2)) in str(raised.value)
    if name != "missing":
        assert "(3, 12) float32, expected (3, 1" in str(raised.value)
    assert bench.names() == ["step-00000001", "step-00000002"]


def test_left_over_tensors_are_an_error_that_names_five(bench: Bench) -> None:
    snapshot = bench.snapshot(1)
    more = {f"model.layer{index}": torch.zeros(1) for index in range(8)}
    bench.store().save(dataclasses.replace(snapshot, engine={**snapshot.engine, **more}))
    with pytest.raises(CheckpointError, match=r"unexpected.*model\.layer4 and 3 more"):
        bench.load()


def test_a_parameter_that_no_update_has_reached_has_no_optimizer_entries(bench: Bench) -> None:
    snapshot = bench.snapshot(1)
    bench.store().save(snapshot)
    spare = {f"optimizer.half.{key}": torch.zeros(5) for key in ("step", "exp_avg.0")}
    loaded = bench.store().load({**snapshot.engine, **spare})
    assert loaded is not None
    assert loaded.engine.keys() == snapshot.engine.keys()
    # Half of the entries are no such case.
    half = {"optimizer.weight.exp_avg_sq": torch.zeros(3, 12)}
    with pytest.raises(CheckpointError, match=r"missing.*optimizer\.weight\.exp_avg_sq"):
        bench.store().load({**snapshot.engine, **half})


def test_nothing_heavy_is_imported_before_the_first_save() -> None:
    program = """
import sys
from launcher.checkpoint import _manifest, directory, none
assert "torch" not in sys.modules
from launcher.checkpoint import _store
assert "torch.distributed.checkpoint" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def save_and_load_in_little_memory(folder: str) -> None:
    """Save a tensor of 42 MB with one copy of it, and load parts of it with none."""
    path = Path(folder)
    bench = Bench(RunDir(path))
    whole = torch.rand(2600, 4000)
    snapshot = dataclasses.replace(bench.snapshot(1), engine={"model.weight": whole})
    # Once without a limit: what is imported and cached is no memory of the model.
    for step in (1, 2):
        store = bench.store(asynchronous=True)
        with memory_limit(int(1.1 * whole.nbytes) if step == 2 else 1 << 40):
            store.save(dataclasses.replace(snapshot, step=step, train_state={"step": step}))
            store.close()
    shards = {
        "rows": Shard.slice_of("weight", whole.shape, 0, 650, 1300),
        "flat": Shard.flat_range("weight", whole.shape, 1_000_001, 2_600_000),
    }
    live = {name: LocalShard(torch.zeros(shard.numel), shard) for name, shard in shards.items()}
    bench.store().load({"model.weight": live["rows"]})
    for local in live.values():
        with memory_limit(local.tensor.nbytes // 2):
            bench.store().load({"model.weight": local})
        expected = torch.empty_like(local.tensor)
        local.shard.scatter(whole, expected)
        assert torch.equal(local.tensor, expected)
    with memory_limit(whole.nbytes // 2), pytest.raises((MemoryError, RuntimeError)):
        torch.empty_like(whole)


def test_a_rank_reads_no_more_than_its_part(tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    folder.mkdir()
    call(save_and_load_in_little_memory, str(folder), cwd=tmp_path, env=os.environ)
