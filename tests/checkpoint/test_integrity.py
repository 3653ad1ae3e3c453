"""Damage of every sort is found before it is used, and the checkpoint before it is loaded."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.checkpoint import _manifest
from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from tests.checkpoint.conftest import Bench

FILES = [
    "manifest.json",
    "config.json",
    "train_state.json",
    "state/.metadata",
    "state/__0_0.distcp",
]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_the_list_of_files_is_whole(bench: Bench) -> None:
    bench.save(1)
    found = (path for path in bench.step(1).rglob("*") if path.is_file())
    assert sorted(path.relative_to(bench.step(1)).as_posix() for path in found) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_falls_back(
    bench: Bench, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    bench.save(1, 2)
    path = bench.step(2) / name
    flip(path, random.Random(name).randrange(8 * path.stat().st_size))
    with caplog.at_level(logging.WARNING, "trainctl.checkpoint"):
        assert bench.same(bench.load(), bench.snapshot(1))
    assert name in caplog.text
    assert "xxh3-128" in caplog.text
    assert bench.names() == ["step-00000001", "step-00000002.corrupt"]


def test_every_one_of_many_flipped_bits_is_found(bench: Bench) -> None:
    bench.save(1)
    generator = random.Random(0)
    sizes = {name: 8 * (bench.step(1) / name).stat().st_size for name in FILES}
    for name in FILES:
        for _ in range(40):
            bit = generator.randrange(sizes[name])
            flip(bench.step(1) / name, bit)
            faults = _manifest.verify(bench.step(1))
            assert len(faults) == 1, f"{name} bit {bit}"
            assert faults[0].startswith(f"{name}: "), f"{name} bit {bit}"
            flip(bench.step(1) / name, bit)
    assert _manifest.verify(bench.step(1)) == []


def test_every_bit_of_the_manifest_counts(bench: Bench) -> None:
    bench.save(1)
    whole = (bench.step(1) / "manifest.json").read_bytes()
    _manifest.decode(whole)
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="must be the xxh3-128"):
            _manifest.decode(bytes(data))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, grow, Path.unlink, link, replace_by_pipe, replace_by_folder]
)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_it_was_falls_back(
    bench: Bench, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    bench.save(1, 2)
    damage(bench.step(2) / name)
    with caplog.at_level(logging.WARNING, "trainctl.checkpoint"):
        assert bench.same(bench.load(), bench.snapshot(1))
    assert name in caplog.text
    assert bench.names() == ["step-00000001", "step-00000002.corrupt"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_step_falls_back(bench: Bench, name: str) -> None:
    bench.save(1, 2)
    other = bench.snapshot(3, config='{"seed": 9}\n')
    bench.store(keep=9).save(other)
    # The index of equal models is equal, and is then no damage.
    differs = (bench.step(3) / name).read_bytes() != (bench.step(2) / name).read_bytes()
    (bench.step(3) / name).write_bytes((bench.step(2) / name).read_bytes())
    assert bench.same(bench.load(), bench.snapshot(2) if differs else other)
    assert differs == (name != "state/.metadata")


def test_a_whole_folder_under_another_step_falls_back(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.save(1, 2)
    bench.step(2).rename(bench.step(5))
    with caplog.at_level(logging.WARNING, "trainctl.checkpoint"):
        assert bench.same(bench.load(), bench.snapshot(1))
    assert "expected step 5, found step 2" in caplog.text


def test_a_step_that_is_a_link_falls_back(bench: Bench) -> None:
    bench.save(1, 2)
    bench.step(2).rename(bench.run_dir.path / "elsewhere")
    bench.step(2).symlink_to(bench.run_dir.path / "elsewhere")
    assert bench.same(bench.load(), bench.snapshot(1))


def test_another_runs_checkpoint_is_refused_but_left_where_it_is(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.save(1, 2)
    bench.reseal(2, run_id="run-2")
    with caplog.at_level(logging.WARNING, "trainctl.checkpoint"):
        assert bench.same(bench.load(), bench.snapshot(1))
    assert "expected run run-1, found run run-2" in caplog.text
    assert bench.names() == ["step-00000001", "step-00000002"]


def test_a_file_that_does_not_belong_is_named_and_not_read(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.save(1)
    (bench.step(1) / "state" / "__1_0.distcp").write_bytes(b"stray")
    (bench.step(1) / ".DS_Store").symlink_to("/dev/zero")
    with caplog.at_level(logging.WARNING, "trainctl.checkpoint"):
        assert bench.same(bench.load(), bench.snapshot(1))
    assert ".DS_Store, state/__1_0.distcp" in caplog.text
    assert bench.names() == ["step-00000001"]


@pytest.mark.parametrize("name", ["/etc/hostname", "../step-00000001/config.json", "state/../a"])
def test_a_path_that_leaves_the_checkpoint_is_refused(bench: Bench, name: str) -> None:
    bench.save(1)
    manifest = _manifest.peek(bench.step(1))
    assert manifest is not None
    record = _manifest.record((bench.step(1) / "config.json").read_bytes())
    bench.reseal(1)
    resealed = manifest.model_copy(update={"files": {**manifest.files, name: record}})
    (bench.step(1) / "manifest.json").write_bytes(_manifest.encode(resealed))
    assert "leaves the checkpoint" in _manifest.verify(bench.step(1))[0]


def test_a_newer_format_is_refused_by_name(bench: Bench) -> None:
    bench.save(1)
    bench.reseal(1, format=2)
    assert "format 2" in _manifest.verify(bench.step(1))[0]


def test_none_fit_lists_each_and_stays_an_error(bench: Bench) -> None:
    bench.save(1, 2)
    truncate(bench.step(1) / "config.json")
    flip(bench.step(2) / "manifest.json", 77)
    for _ in range(2):  # a second try must not begin from nothing
        with pytest.raises(CheckpointError, match="no valid checkpoint") as raised:
            bench.load()
        assert "step-00000001" in str(raised.value)
        assert "step-00000002" in str(raised.value)
    assert bench.names() == ["step-00000001.corrupt", "step-00000002.corrupt"]


def test_an_older_quarantined_one_is_not_overwritten(bench: Bench) -> None:
    for _ in range(2):
        bench.save(1, 2)
        truncate(bench.step(2) / "config.json")
        assert bench.same(bench.load(), bench.snapshot(1))
    assert len([name for name in bench.names() if ".corrupt" in name]) == 2
