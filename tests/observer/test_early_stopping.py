from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from launcher.config.load import load_config
from launcher.contracts import (
    Observer,
    RunContext,
    StepReport,
    Stop,
    TrainState,
    UpdateStats,
    Window,
    World,
)
from launcher.errors import ConfigError
from launcher.run_dir import RunDir
from tests.conftest import Console

STOPPING = ("observer=early_stopping", "observer.patience=2")
NO_STEP = ("scheduler=constant", "scheduler.factor=0")


def observer(start: TrainState | None = None, **settings: Any) -> Observer:
    words = [f"observer.{key}={value}" for key, value in settings.items()]
    option = load_config(["observer=early_stopping", *words]).config.observer
    context = RunContext(
        run_dir=RunDir(Path("/nowhere")),
        world=World(0, 1, 0, "cpu"),
        start=start or TrainState(),
        logged_step=0,
        max_steps=100,
        summary=[],
        config={},
        recorder=lambda _: pytest.fail("no recorder is asked for"),
        saver=lambda _: pytest.fail("no saver is asked for"),
    )
    [made] = option.observers(context)
    return made


def report(step: int, scores: Mapping[str, float]) -> StepReport:
    update = UpdateStats(torch.zeros(()), applied=True)
    window = cast(Window, None)
    return StepReport(TrainState(step=step), window, torch.zeros(()), update, 0.1, scores)


def stopped_at(made: Observer, losses: Sequence[float], name: str = "eval_loss") -> int | None:
    """The evaluation, from 1, after which the observer stops the run."""
    for place, loss in enumerate(losses, 1):
        assert made(report(10 * place - 1, {})) is None, "a step without evaluation counts nothing"
        if made(report(10 * place, {name: loss})) is not None:
            return place
    return None


@pytest.mark.parametrize(
    ("settings", "losses", "place"),
    [
        ({"patience": 2}, [3.0, 2.0, 1.0, 0.5], None),
        ({"patience": 2}, [3.0, 3.0, 3.0], 3),
        ({"patience": 2}, [3.0, 4.0, 2.9, 4.0, 3.0], 5),
        ({"patience": 1}, [3.0, 3.0], 2),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.6, 2.5], 3),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.6, 2.4, 2.0], None),
        ({"patience": 2, "mode": "max"}, [1.0, 2.0, 3.0, 2.0, 3.0], 5),
        ({"patience": 2}, [3.0, math.nan, math.inf], 3),
        ({"patience": 2}, [math.nan, math.nan], 2),
        ({"patience": 2}, [math.nan, 3.0, math.nan, 2.0], None),
    ],
)
def test_when_it_stops(settings: dict[str, Any], losses: list[float], place: int | None) -> None:
    assert stopped_at(observer(**settings), losses) == place


def test_the_reason_names_score_and_best() -> None:
    made = observer(patience=1)
    made(report(1, {"eval_loss": 2.5}))
    assert made(report(2, {"eval_loss": 2.5})) == Stop(
        "eval_loss has not improved in 1 evaluations (best 2.5)"
    )


def test_a_resumed_run_continues_counting() -> None:
    losses = [3.0, 3.0, 3.0, 3.0]
    first = observer(patience=3)
    assert stopped_at(first, losses[:2]) is None
    stored = json.loads(json.dumps(TrainState(observers=first.memory()).to_json()))
    assert stopped_at(observer(TrainState.from_json(stored), patience=3), losses[2:]) == 2


def test_the_best_of_another_score_is_not_compared_with() -> None:
    first = observer(patience=1)
    first(report(1, {"eval_loss": 0.1}))
    start = TrainState(observers=first.memory())
    second = observer(start, patience=1, metric="eval_perplexity")
    assert stopped_at(second, [9.0, 8.0, 8.0], "eval_perplexity") == 3


def test_without_evaluations_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval_every_steps: must be a number, because observer"):
        load_config(["observer=early_stopping", "eval_every_steps=null"])
    load_config(["observer=none", "eval_every_steps=null"])


def test_a_score_that_the_task_does_not_have_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"observer.metric: .* is eval_los; did you mean 'eval_lo"
    ):
        load_config(["observer=early_stopping", "observer.metric=eval_los"])


def test_a_stopped_run_ends_as_a_complete_one(trainctl: Console) -> None:
    """With a learning rate of 0, no evaluation improves on the first."""
    words = (*NO_STEP, "eval_every_steps=2", "eval_max_samples=2", "checkpoint.export=true")
    out, _ = trainctl.toy(*STOPPING, *words, "checkpoint.every_steps=null")
    run_dir = trainctl.run_dir()
    reason = "eval_loss has not improved in 2 evaluations"
    assert f"stopped after step 6: {reason}" in out
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["step"] == 6
    assert result["stopped"].startswith(reason)
    rows = trainctl.rows(run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # Its last evaluation sees all samples, those before it two of them.
    assert rows[5]["eval_loss"] != rows[3]["eval_loss"] == rows[1]["eval_loss"]
    assert result["scores"]["eval_loss"] == rows[5]["eval_loss"]
    assert (run_dir / "export" / "weights.pt").exists()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000006"]


def test_a_stopped_run_stays_stopped_until_its_settings_change(trainctl: Console) -> None:
    words = (*NO_STEP, "eval_every_steps=2")
    trainctl.toy(*STOPPING, *words)
    run_dir = trainctl.run_dir()
    out, _ = trainctl("resume", str(run_dir))
    assert "nothing to do: the run is finished (step 6)" in out
    assert trainctl.rows(run_dir)[-1]["step"] == 6
    out, _ = trainctl("resume", str(run_dir), "observer=none")
    assert "stopped after" not in out
    assert trainctl.rows(run_dir)[-1]["step"] == 12


def test_a_resume_between_evaluations_stops_where_the_whole_run_does(trainctl: Console) -> None:
    trainctl.toy(*STOPPING, *NO_STEP, "eval_every_steps=3", "checkpoint.keep=9")
    run_dir = trainctl.run_dir()
    rows = trainctl.rows(run_dir)
    for step in (8, 9):
        shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08}")
    trainctl("resume", str(run_dir))
    again = trainctl.rows(run_dir)
    assert [row["step"] for row in again] == [row["step"] for row in rows] == list(range(1, 10))
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]
