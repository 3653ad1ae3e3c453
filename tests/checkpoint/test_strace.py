"""As test_crash, without our seam: the kernel kills a save at every system call that matters."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.checkpoint.conftest import Bench

ROOT = Path(__file__).parents[2]
CALLS = "mkdir,rename,renameat,renameat2,fsync,fdatasync,unlink,unlinkat,rmdir,openat,write"

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/checkpoint")
from conftest import Bench
from launcher.checkpoint import _dcp
from launcher.run_dir import RunDir
import torch
torch.set_num_threads(1)
bench = Bench(RunDir(Path(sys.argv[1])))
snapshot = bench.snapshot(3)
Path(sys.argv[1], "marker").touch()
bench.store(keep=2, asynchronous=False).save(snapshot)
"""


def trace(bench: Bench, *options: str) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-B", "-c", PROGRAM, str(bench.run_dir.path)]
    command = ["strace", "-ff", "-qq", "-e", f"trace={CALLS}", *options, "--", *program]
    return subprocess.run(command, capture_output=True, check=False, cwd=ROOT)


def calls_of_the_save(bench: Bench, log: Path) -> list[tuple[str, int]]:
    """System calls that a save makes on its folder, each with its number in the thread's life."""
    trace(bench, "-y", "-o", str(log)).check_returncode()
    # strace counts for each thread, and writes a file for each.
    texts = [path.read_text("utf-8") for path in log.parent.glob(f"{log.name}.*")]
    (lines,) = (text.splitlines() for text in texts if "/marker" in text)
    count: dict[str, int] = {}
    calls: list[tuple[str, int]] = []
    saving = False
    for line in lines:
        call = line.partition("(")[0]
        count[call] = count.get(call, 0) + 1
        if saving and str(bench.run_dir.path) in line and "O_RDONLY" not in line:
            calls.append((call, count[call]))
        saving |= "/marker" in line
    return calls


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_killed_at_every_system_call(bench: Bench, tmp_path: Path) -> None:
    bench.save(1, 2)
    calls = calls_of_the_save(bench.copy(tmp_path / "quiet"), tmp_path / "log")
    assert len(calls) > 30
    found = []
    for number, (call, nth) in enumerate(calls):
        run = bench.copy(tmp_path / f"killed-{number}")
        died = trace(
            run, "-o", str(tmp_path / "killed"), "-e", f"inject={call}:signal=SIGKILL:when={nth}"
        )
        where = f"killed in {call} number {nth}"
        assert died.returncode != 0, where
        assert (run.run_dir.path / "marker").exists(), where
        loaded = run.load()
        found += [step for step in (2, 3) if run.same(loaded, run.snapshot(step))]
        assert len(found) == number + 1, where
        run.save(7)
        assert run.same(run.load(), run.snapshot(7)), where
    assert found == sorted(found)
    assert set(found) == {2, 3}
