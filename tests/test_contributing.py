"""The examples in CONTRIBUTING.md, saved under their paths in a copy of the tree, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from launcher.contracts import ParallelismOption
from launcher.registry import option_class
from tests.contract.engine_bench import Case, Trajectory, optimizer_option, run_cases
from tests.contract.test_engines import check_same_training
from tests.distributed import run_on_ranks

ROOT = Path(__file__).parents[1]
EXAMPLE = re.compile(
    r"^`((?:launcher|conf)/[\w/]+\.\w+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
CHOSEN = [
    "optimizer=asgd",
    "parallelism=spilled",
    "task=smoothed_lm",
    "observer=token_budget",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name in ("launcher", "conf", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    examples = EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(examples) == 10
    for path, text in examples:
        assert not (folder / path).exists(), f"{path} is not new any more: choose another example"
        (folder / path).write_text(text)
    return folder


def trainctl(tree: Path, *words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_examples_pass_the_gate(tree: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        new = [path for path, _ in EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))]
        sources = [path for path in new if path.endswith(".py")]
        ruff = [sys.executable, "-m", "ruff", *command, *sources]
        ended = subprocess.run(ruff, cwd=tree, text=True, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stdout


def test_nothing_else_is_edited(tree: Path) -> None:
    config = json.loads(trainctl(tree, "config", "show", "--json", *CHOSEN))
    assert config["task"]["smoothing"] == 0.1
    assert config["task"]["seq_len"] > 0
    assert "asgd" in trainctl(tree, "list", "optimizer")
    assert "0.1" in trainctl(tree, "list", "task.smoothed_lm")


def test_the_examples_train_together(tree: Path) -> None:
    (tree / "text.txt").write_text("to be or not to be, that is the question. " * 200)
    (tree / "more.txt").write_text("whether it is nobler in the mind to suffer " * 200)
    words = [*CHOSEN, "data=text", "data.files='*.txt'", "max_steps=2", "checkpoint=none"]
    trainctl(tree, "run", *words, "task.sample_tokens=0", "logging=quiet")
    [metrics] = tree.glob("runs/*/*/metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 2


def run_example_engine(examples: Mapping[str, str]) -> list[Trajectory]:
    """Train with the example engine, and with two cuts of `single`."""
    modules = []
    for name in ("_spilled_engine", "spilled"):
        module = ModuleType(f"launcher.parallelism.{name}")
        sys.modules[module.__name__] = module
        exec(examples[f"launcher/parallelism/{name}.py"], module.__dict__)
        modules.append(module)
    spilled: ParallelismOption = modules[-1].Spilled(kind="spilled", pin_memory=False)
    single = option_class("parallelism", "single").model_validate({"kind": "single"})
    assert isinstance(single, ParallelismOption)
    engines = ((spilled, 1), (single, 1), (single, 4))
    return run_cases(
        [
            Case(parallelism=engine, optimizer=optimizer_option(preset), accumulation=accumulation)
            for preset in ("adamw", "adafactor", "sgd")
            for engine, accumulation in engines
        ]
    )


def test_the_example_engine_keeps_the_contract() -> None:
    examples = dict(EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    [found] = run_on_ranks(run_example_engine, examples, ranks=1)
    for first in range(0, len(found), 3):
        check_same_training(found[first : first + 1], found[first + 1], found[first + 2])
