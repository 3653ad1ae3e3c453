"""`trainctl verify --faults`: kills of a shrunk run, and what they lose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import NotTheSame
from launcher.verify.faults import Fault, FaultReport, summary
from tests.conftest import Console, toy_words

REPORT = FaultReport(
    ranks=2,
    max_steps=10,
    every_steps=2,
    file_system="ext4",
    folder=Path("runs/sameness/toy/faults-1"),
    faults=[Fault(rank=1, in_save=True, saved_step=4, reached_step=7, from_step=4)],
    damaged=[],
    differing=[],
    error="",
    seed=3,
    seconds=1.0,
)


def test_kills_lose_nothing(trainctl: Console) -> None:
    words = toy_words("task.step_s=0.02", "--json=found.json", "--seed=5")
    out, _ = trainctl("verify", "--faults=1", *words)
    found = json.loads((trainctl.folder / "found.json").read_text())
    assert (found["ok"], found["ranks"], found["losses"]) == (True, 1, [])
    assert len(found["faults"]) == 1
    assert all(each["from_step"] >= each["saved_step"] >= 2 for each in found["faults"])
    assert "1 kill of 1 rank" in out
    assert "the last state is bitwise that of an undisturbed run" in out
    assert not list((trainctl.folder / "runs").rglob("faults-*"))


@pytest.mark.parametrize(
    ("changed", "loss"),
    [
        ({"error": "RankFailed: rank 1 failed"}, "the run did not come to its end: RankFailed"),
        ({"damaged": ["step-00000004.corrupt"]}, "damaged checkpoint: step-00000004.corrupt"),
        ({"differing": ["state/__1_0.distcp"]}, "state/__1_0.distcp differ"),
        (
            {"faults": [replace(REPORT.faults[0], from_step=2)]},
            "kill 1: the checkpoint of step 4 was lost, the ranks continued from step 2",
        ),
    ],
)
def test_a_loss_is_an_error(changed: dict[str, object], loss: str) -> None:
    REPORT.check()
    assert "at most 3 steps repeated" in summary(REPORT)
    report = replace(REPORT, **changed)  # type: ignore[arg-type]
    with pytest.raises(NotTheSame, match=r"the run is kept in runs/sameness") as caught:
        report.check()
    assert loss in str(caught.value)
    assert "1 problem (--seed 3)" in summary(report)
    assert not report.to_json()["ok"]


def test_a_run_that_saves_nothing_cannot_be_killed(trainctl: Console) -> None:
    _, err = trainctl("verify", "--faults=1", *toy_words("checkpoint=none"), status=2)
    assert "checkpoint" in err
