"""The examples in README.md are run or checked unchanged."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.load import load_config
from tests import fork_server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
RUNS = re.findall(r"^trainctl run (?!-)(.+?)(?:\s+#.*)?$", README, re.MULTILINE)
SETTINGS = re.findall(r"(?<!`)`((?:[a-z_]+(?:\.\w+)*=[^`…]+))`", README)
PLACEHOLDERS = {"group=option", "parallelism=ddp launch.processes=N"}


def test_examples_are_found() -> None:
    assert len(RUNS) >= 5
    assert len(SETTINGS) >= 15
    assert set(SETTINGS) >= PLACEHOLDERS


@pytest.mark.parametrize("words", [*RUNS, *sorted({*SETTINGS} - PLACEHOLDERS)])
def test_settings_are_valid(words: str) -> None:
    load_config(shlex.split(words))


def test_the_error_is_the_one_that_is_shown() -> None:
    [shown] = re.findall(
        r"^```console\n\$ trainctl (.*?)\n(.*?)^```", README, re.MULTILINE | re.DOTALL
    )
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *shlex.split(shown[0])],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, shown[1])


def test_the_python_example_runs(tmp_path: Path) -> None:
    [source] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "notes").mkdir()
    for name in "abc":
        (tmp_path / "notes" / f"{name}.txt").write_text(f"Notes on {name}, and more of them. " * 99)
    (tmp_path / "example.py").write_text(
        f"{source}\nassert longer.result.step == 12 and not model.training\n", encoding="utf-8"
    )
    process = fork_server.start(
        ["-m", "example"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"},
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    first, second = out.splitlines()
    path, score, loss = first.split()
    assert Path(path).parent == tmp_path / "runs" / "default"
    assert 0 < float(loss) < 10
    assert 0 < float(score) < 10
    steps, rate = second.rsplit(maxsplit=1)
    assert steps.endswith("12]")
    assert float(rate) <= 2e-3
