"""One run on several engines and numbers of ranks: the same losses, every sample once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Console
from tests.end_to_end.test_resume import weights

BATCH = ("accumulation.micro_batch_size=1", "accumulation.samples_per_step=6")
# A rate that does not depend on the length, and nothing drawn that depends on the ranks.
STEADY = (*BATCH, "scheduler=constant", "model.dropout=0", "optimizer=sgd", "optimizer.lr=0.1")


def ranks(number: int) -> tuple[str, str]:
    return f"parallelism={'ddp' if number > 1 else 'single'}", f"launch.processes={number}"


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


def test_a_run_moves_between_engines_and_numbers_of_ranks(trainctl: Console) -> None:
    trainctl.toy("name=undisturbed", *STEADY, *ranks(1))
    expected = trainctl.rows(trainctl.run_dir("undisturbed"))
    trainctl.toy(*STEADY, *ranks(2), "max_steps=3")
    run_dir = trainctl.run_dir()
    for number, until in ((1, 6), (3, 9), (2, 12)):
        trainctl("resume", str(run_dir), *ranks(number), f"max_steps={until}")
    rows = trainctl.rows(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert losses(rows) == pytest.approx(losses(expected), rel=1e-5)
    assert [row["samples"] for row in rows] == [row["samples"] for row in expected]
    final = rows[-1]["eval_loss"], expected[-1]["eval_loss"]
    assert final[0] == pytest.approx(final[1], rel=1e-5)


def test_epochs_that_do_not_divide_lose_no_sample(trainctl: Console) -> None:
    """50 samples in windows of 6: the last one holds 2, of which a third rank gets none."""
    for number in (1, 3):
        words = ("max_steps=null", "max_epochs=1", "eval_every_steps=null", f"name=epoch{number}")
        trainctl.toy(*STEADY, *ranks(number), *words)
    alone, three = (trainctl.rows(trainctl.run_dir(f"epoch{number}")) for number in (1, 3))
    assert alone[-1]["samples"] == three[-1]["samples"] == 50
    assert losses(three) == pytest.approx(losses(alone), rel=1e-5)
    assert three[-1]["eval_loss"] == pytest.approx(alone[-1]["eval_loss"], rel=1e-6)


def test_dropout_on_two_ranks_resumes_bitwise(trainctl: Console) -> None:
    steady = (*BATCH, *ranks(2), "scheduler=constant")
    trainctl.toy(*steady, "max_steps=7", "name=whole")
    trainctl.toy(*steady, "max_steps=4")
    run_dir, whole = trainctl.run_dir(), trainctl.run_dir("whole")
    trainctl("resume", str(run_dir), "max_steps=7")
    assert losses(trainctl.rows(run_dir)) == losses(trainctl.rows(whole))
    assert weights(run_dir) == weights(whole)
