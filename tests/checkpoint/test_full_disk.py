"""A disk that is really full: a small tmpfs, where the rights to mount one are given."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from launcher.checkpoint._store import DirectoryStore
    from launcher.contracts import Snapshot
    from tests.checkpoint.conftest import Bench

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if not sys.platform.startswith("linux"):
        pytest.skip("tmpfs is Linux's")
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounting.returncode:
        pytest.skip(f"no right to mount a tmpfs: {mounting.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_costs_nothing_but_the_save(
    bench: Bench, small_disk: Path, *, asynchronous: bool
) -> None:
    run = bench.elsewhere(small_disk)
    run.run_dir.path.mkdir()
    numel = MIB // 8  # 3 MiB of tensors: two checkpoints fit on the disk, a third one does not
    snapshots = [run.snapshot(step, numel=numel) for step in range(4)]
    store = run.store(keep=9, asynchronous=asynchronous)
    for snapshot in snapshots[1:3]:
        store.save(snapshot)
    store.wait()
    with pytest.raises(CheckpointError, match="No space left on device") as raised:
        save_and_wait(store, snapshots[3])
    assert str(run.folder) in str(raised.value)
    assert re.search(r"[\d,]+ bytes are free, 3,1\d\d,\d{3} are needed", str(raised.value))
    assert run.names() == ["step-00000001", "step-00000002"]
    assert run.same(run.store().load(snapshots[0].engine), snapshots[2])
    # With space for one more checkpoint, the same store continues.
    shutil.rmtree(run.step(1))
    save_and_wait(store, snapshots[3])
    assert run.names() == ["step-00000002", "step-00000003"]
    assert run.same(run.store().load(snapshots[0].engine), snapshots[3])


def save_and_wait(store: DirectoryStore, snapshot: Snapshot) -> None:
    store.save(snapshot)
    store.wait()
