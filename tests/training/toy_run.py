"""Runs of the toy job in this process: its parts are public, its options are not discovered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import Any

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import Layout, World
from launcher.run_dir import RunDir
from launcher.training.runner import Outcome, run
from tests.conftest import toy_words
from tests.toy.options import ToyData, ToyModel, ToyTask

TOY = {"model=toy", "task=toy", "data=toy"}


def toy_config(*words: str, **task: Any) -> RunConfig:
    """The config of the toy job with some settings changed, those of the task by name."""
    config = load_config([word for word in toy_words(*words) if word not in TOY]).config
    values: dict[str, Any] = {"seq_len": 12, "poison": None, "overflow": None, "step_s": 0.0}
    parts = {
        "model": ToyModel(kind="toy", width=8, dropout=0.1),
        "data": ToyData(kind="toy", documents=50),
        "task": ToyTask(kind="toy", **{**values, **task}),
    }
    return config.model_copy(update=parts)


def toy_run(
    folder: Path,
    config: RunConfig,
    stop: Callable[[], Signals | None] = lambda: None,
    beat: Callable[[str, int], None] = lambda phase, step: None,
) -> Outcome:
    """Run, or resume, the config in a folder."""
    folder.mkdir(exist_ok=True)
    return run(config, RunDir(folder), World(0, 1, 0, "cpu", Layout()), stop, beat)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, without the values that differ between runs."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    times = ("tokens_per_s", "elapsed_s", "memory_mib")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]
