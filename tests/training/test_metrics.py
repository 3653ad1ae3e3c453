"""The rows of metrics: mean losses, also over a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from signal import SIGTERM
from statistics import fmean

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import StepReport, TrainState, UpdateStats, Window
from launcher.errors import Preempted
from launcher.training.metrics import RowBuilder
from tests.training.toy_run import rows, toy_config, toy_run

EVERY_THREE = ("log_every_steps=3", "eval_every_steps=null", "logging.console=none")


def report(step: int, loss: Tensor, *, applied: bool = True) -> StepReport:
    update = UpdateStats(torch.ones(()), applied=applied)
    return StepReport(TrainState(step=step), Window([], 4, 8), loss, update, 0.1)


def test_the_loss_of_a_row_is_the_mean_since_the_row_before(tmp_path: Path) -> None:
    toy_run(tmp_path / "each", toy_config(*EVERY_THREE, "log_every_steps=1", "max_steps=11"))
    each = [row["loss"] for row in rows(tmp_path / "each")]
    assert [row["loss_step"] for row in rows(tmp_path / "each")] == each
    toy_run(tmp_path / "some", toy_config(*EVERY_THREE, "max_steps=11"))
    some = rows(tmp_path / "some")
    assert [row["step"] for row in some] == [3, 6, 9, 11]
    means = [fmean(each[0:3]), fmean(each[3:6]), fmean(each[6:9]), fmean(each[9:11])]
    assert [row["loss"] for row in some] == pytest.approx(means, rel=1e-6)
    assert [row["loss_step"] for row in some] == [each[2], each[5], each[8], each[10]]


def test_a_resume_between_two_rows_logs_the_mean_of_the_whole_run(tmp_path: Path) -> None:
    toy_run(tmp_path / "whole", toy_config(*EVERY_THREE))
    signals = iter([None] * 5)  # one is asked for before the first step
    with pytest.raises(Preempted, match="after step 5"):
        toy_run(tmp_path / "parts", toy_config(*EVERY_THREE), lambda: next(signals, SIGTERM))
    assert rows(tmp_path / "parts")[-1]["step"] == 3
    [stored] = (tmp_path / "parts").glob("checkpoints/*5/train_state.json")
    assert json.loads(stored.read_text())["observers"]["logging.loss_count"] == 2
    toy_run(tmp_path / "parts", toy_config(*EVERY_THREE))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_nothing_is_read_from_the_device_between_rows() -> None:
    class OnDevice(Tensor):
        reads = 0

        @override
        def item(self) -> float:
            OnDevice.reads += 1
            return super().item()

    made = RowBuilder(every_steps=10, start=TrainState(), logged_step=0, evaluating=lambda: 0.0)
    losses = [torch.tensor(float(step)).as_subclass(OnDevice) for step in range(1, 11)]
    for step, loss in enumerate(losses, 1):
        made(report(step, loss))
        if made.is_due(report(step, loss)):
            break
    assert OnDevice.reads == 0
    row = made.row(report(10, losses[-1]))
    assert (row["loss"], row["loss_step"]) == (5.5, 10.0)
    assert OnDevice.reads > 0


def test_a_skipped_step_does_not_spoil_the_mean() -> None:
    made = RowBuilder(every_steps=10, start=TrainState(), logged_step=0, evaluating=lambda: 0.0)
    for step, loss in enumerate([2.0, 4.0], 1):
        made(report(step, torch.tensor(loss)))
    overflow = report(3, torch.tensor(6.0), applied=False)
    made(overflow)
    assert made.row(overflow)["loss"] == 4.0
    bad = report(4, torch.tensor(math.nan), applied=False)
    made(bad)
    assert (made.row(bad)["loss"], made.row(bad)["loss_step"]) == (None, None)
    made(report(5, torch.tensor(3.0)))
    bad = report(6, torch.tensor(math.nan), applied=False)
    made(bad)
    assert (made.row(bad)["loss"], made.row(bad)["loss_step"]) == (3.0, None)


def test_losses_of_the_model_itself_have_columns_of_their_own() -> None:
    made = RowBuilder(every_steps=1, start=TrainState(), logged_step=0, evaluating=lambda: 0.0)
    update = UpdateStats(torch.ones(()), True, auxiliary_losses={"router_aux_loss": torch.ones(())})
    made(step := StepReport(TrainState(step=1), Window([], 4, 8), torch.ones(()), update, 0.1))
    assert made.row(step)["router_aux_loss"] == 1.0
    assert "router_aux_loss" not in made.row(report(2, torch.ones(())))


@pytest.mark.parametrize("share", [0.25, None])
def test_the_share_of_padding_has_a_column_where_samples_are_padded(share: float | None) -> None:
    made = RowBuilder(
        every_steps=1,
        start=TrainState(),
        logged_step=0,
        evaluating=lambda: 0.0,
        padding=lambda: share,
    )
    assert made.row(report(1, torch.ones(()))).get("padding") == share
