"""Evaluations and signals: the state is saved first, and a resumed run repeats the evaluation."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Any

import pytest
from typing_extensions import override

from launcher.errors import Interrupted, Preempted
from tests.training.toy_run import rows, toy_config, toy_run

WORDS = (
    "logging.console=none",
    "log_every_steps=5",
    "checkpoint.keep=9",
    "max_steps=11",
    "scheduler=reduce_on_plateau",
    "scheduler.patience=0",
    "scheduler.threshold=0.5",
)


class Interruption:
    """A signal that comes when an evaluation has begun."""

    def __init__(self, step: int, signal: Signals = SIGTERM, number: int = 2) -> None:
        self.step, self.signal, self.number = step, signal, number
        self.came = False
        self.seen: list[tuple[str, int]] = []

    def __call__(self) -> Signals | None:
        return self.signal if self.came else None

    def beat(self, phase: str, step: int) -> None:
        self.seen.append((phase, step))
        self.came = self.came or self.seen.count(("evaluate", self.step)) == self.number


def train_states(folder: Path) -> Mapping[int, dict[str, Any]]:
    paths = sorted(folder.glob("checkpoints/*/train_state.json"))
    return {int(path.parent.name[5:]): json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    toy_run(folder, toy_config(*WORDS))
    return folder


def test_the_last_step_is_saved_before_its_evaluation(tmp_path: Path) -> None:
    events: list[tuple[str, int]] = []
    toy_run(tmp_path, toy_config(*WORDS), beat=lambda *beat: events.append(beat))
    assert events.index(("save", 11)) < events.index(("evaluate", 11))
    assert events.count(("save", 11)) == 1


@pytest.mark.parametrize("step", [5, 11], ids=["within", "after the last step"])
def test_a_signal_ends_an_evaluation_and_a_resume_repeats_it(
    tmp_path: Path, whole: Path, step: int
) -> None:
    config = toy_config(*WORDS)
    interruption = Interruption(step)
    with pytest.raises(Preempted, match=f"SIGTERM received: stopped after step {step}"):
        toy_run(tmp_path / "run", config, interruption, interruption.beat)
    # Three micro-batches are due; the ranks agree after at most two.
    assert interruption.seen.count(("evaluate", step)) == 2
    assert step in train_states(tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert (last["step"], "eval_loss" in last) == (step, False)
    outcome = toy_run(tmp_path / "run", config)
    assert rows(tmp_path / "run") == rows(whole)
    assert outcome.scores == {"eval_loss": rows(whole)[-1]["eval_loss"]}
    [(_, mine), (_, other)] = [
        max(train_states(each).items()) for each in (tmp_path / "run", whole)
    ]
    assert mine == other


def test_a_kill_in_the_last_evaluation_loses_no_step(tmp_path: Path, whole: Path) -> None:
    class Killed(Exception):
        pass

    def beat(phase: str, step: int) -> None:
        if (phase, step) == ("evaluate", 11):
            raise Killed

    config = toy_config(*WORDS, "checkpoint.asynchronous=false")
    with pytest.raises(Killed):
        toy_run(tmp_path / "run", config, beat=beat)
    steps: list[int] = []
    toy_run(tmp_path / "run", config, beat=lambda phase, step: steps.append(step))
    assert set(steps) == {11}
    assert rows(tmp_path / "run") == rows(whole)


def test_a_signal_during_the_step_leaves_out_its_evaluation(tmp_path: Path, whole: Path) -> None:
    config = toy_config(*WORDS)
    signals = iter([None] * 5)
    evaluated: list[int] = []
    with pytest.raises(Interrupted, match="after step 5"):
        toy_run(
            tmp_path / "run",
            config,
            lambda: next(signals, SIGINT),
            lambda phase, step: evaluated.append(step) if phase == "evaluate" else None,
        )
    assert not evaluated
    toy_run(tmp_path / "run", config)
    assert rows(tmp_path / "run") == rows(whole)


def test_a_longer_run_keeps_the_final_scores_of_the_shorter(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "whole")
    before = rows(whole)
    toy_run(tmp_path / "whole", toy_config(*WORDS, "max_steps=13"))
    after = rows(tmp_path / "whole")
    assert after[: len(before)] == before
    assert [row["step"] for row in after] == [5, 10, 11, 13]
    assert after[-1]["loss"] == pytest.approx(after[-1]["loss_step"], rel=0.1)


def test_an_evaluation_of_slow_micro_batches_asks_after_each(tmp_path: Path) -> None:
    """However long a micro-batch takes, a signal waits for no more than a few of them."""

    class Slow(Interruption):
        @override
        def beat(self, phase: str, step: int) -> None:
            super().beat(phase, step)
            if phase == "evaluate":
                time.sleep(0.3)

    words = ("accumulation.micro_batch_size=1", "max_steps=1")
    interruption = Slow(1, number=3)
    with pytest.raises(Preempted):
        toy_run(tmp_path, toy_config(*WORDS, *words), interruption, interruption.beat)
    assert interruption.seen.count(("evaluate", 1)) == 3


@pytest.mark.parametrize(("limit", "count"), [("null", 5), ("3", 3), ("99", 5)])
def test_the_last_evaluation_has_a_limit_of_its_own(tmp_path: Path, limit: str, count: int) -> None:
    words = (f"final_eval_max_samples={limit}", "eval_max_samples=1", "max_steps=5")
    seen: list[tuple[str, int]] = []
    config = toy_config(*WORDS, *words, "accumulation.micro_batch_size=1")
    toy_run(tmp_path, config, beat=lambda *beat: seen.append(beat))
    assert seen.count(("evaluate", 5)) == count
