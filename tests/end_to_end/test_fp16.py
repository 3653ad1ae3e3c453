"""A float16 overflow at a step that is known beforehand, through `trainctl run` and `resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.batching._orders import permutation
from launcher.training.batches import mixed
from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import trace, wait_for_step, weights

SAMPLE, STEPS, SAMPLES_PER_STEP = 17, 12, 4
WORDS = ("precision=fp16", "precision.growth_interval=4", f"task.overflow={SAMPLE}")


@pytest.fixture(scope="module")
def bad_step() -> int:
    """The one step of the toy job that meets the sample, counted from 1."""
    order: list[int] = permutation(mixed(0, 0), 50).tolist()
    step = order.index(SAMPLE) // SAMPLES_PER_STEP + 1
    assert step <= STEPS
    return step


def scales(trainctl: Console, run_dir: Path) -> list[Any]:
    return [row["loss_scale"] for row in trainctl.rows(run_dir)]


def test_an_overflow_is_skipped_and_the_schedule_advances(trainctl: Console, bad_step: int) -> None:
    trainctl.toy(*WORDS)
    rows = trainctl.rows(trainctl.run_dir())
    trainctl.toy("name=calm", "precision=fp16")
    calm = trainctl.rows(trainctl.run_dir("calm"))
    assert [row["skipped"] for row in rows] == [int(row["step"] >= bad_step) for row in rows]
    assert rows[bad_step - 1]["grad_norm"] is None
    assert rows[bad_step - 1]["loss"] is not None
    # The schedule is a function of the data seen: a skipped update counts as a step.
    for key in ("lr", "samples", "tokens"):
        assert [row[key] for row in rows] == [row[key] for row in calm]
    losses, calm_losses = ([row["loss"] for row in run] for run in (rows, calm))
    assert losses[:bad_step] == calm_losses[:bad_step]
    assert losses[bad_step] != calm_losses[bad_step]  # one update fewer
    # Halved from the next step on, and doubled again after four good ones.
    whole, half = 2.0**16, 2.0**15
    expected = [*[whole] * bad_step, *[half] * 4, *[whole] * 4, *[2 * whole] * STEPS]
    assert scales(trainctl, trainctl.run_dir()) == expected[:STEPS]


def test_a_killed_run_keeps_scale_and_count(trainctl: Console, bad_step: int) -> None:
    trainctl.toy("name=undisturbed", *WORDS)
    undisturbed = trainctl.run_dir("undisturbed")
    # The checkpoint of step 4 is after the overflow, and in the middle of the count to four.
    assert bad_step < 4
    process = trainctl.start("run", *toy_words(*WORDS, "task.step_s=0.03"))
    run_dir = wait_for_step(trainctl, 5)
    process.kill()
    process.communicate()
    trainctl("resume", str(run_dir))
    assert trace(trainctl, run_dir) == trace(trainctl, undisturbed)
    assert scales(trainctl, run_dir) == scales(trainctl, undisturbed)
    assert weights(run_dir) == weights(undisturbed)


@pytest.mark.parametrize("last", [1, 2])
def test_overflows_before_the_first_update_leave_no_trace(trainctl: Console, last: int) -> None:
    """Before the first update, neither saving nor resuming changes a weight."""
    first: int = permutation(mixed(0, 0), 50).tolist()[0]
    words = (f"task.overflow={first}", "precision=fp16", "scheduler=constant", "max_epochs=null")
    trainctl.toy("name=undisturbed", *words, "checkpoint.every_steps=100")
    trainctl.toy("name=saving", *words, "checkpoint.every_steps=1")
    trainctl.toy("name=resumed", *words, f"max_steps={last}")
    trainctl("resume", str(trainctl.run_dir("resumed")), "max_steps=12")
    undisturbed, saving, resumed = map(trainctl.run_dir, ("undisturbed", "saving", "resumed"))
    assert [row["skipped"] for row in trainctl.rows(undisturbed)] == [1] * STEPS
    assert weights(saving) == weights(undisturbed)
    assert weights(resumed) == weights(undisturbed)
    assert scales(trainctl, resumed) == scales(trainctl, undisturbed)


def test_a_run_resumes_in_the_format_that_its_error_advises(trainctl: Console) -> None:
    third: int = permutation(mixed(0, 0), 50).tolist()[2 * SAMPLES_PER_STEP]
    words = ("precision=fp16", "precision.init_scale=1.0", f"task.overflow={third}")
    _, err = trainctl.toy(*words, "checkpoint.every_steps=1", status=10)
    assert "write precision=bf16" in err
    run_dir = trainctl.run_dir()
    assert (run_dir / "checkpoints" / "step-00000002").exists()
    change = ("precision=bf16", "max_steps=8", "on_nonfinite=skip", "--allow", "precision")
    trainctl("resume", str(run_dir), *change)
    assert [row["step"] for row in trainctl.rows(run_dir)] == list(range(1, 9))
