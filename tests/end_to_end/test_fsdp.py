"""`trainctl run parallelism=fsdp`, and runs that continue on other engines and numbers of ranks."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import Console
from tests.end_to_end.test_resume import trace, weights

COMMON = (
    "accumulation.samples_per_step=12",
    "accumulation.micro_batch_size=1",
    "model.dropout=0.0",  # drawn by each rank
    "scheduler=constant",  # it does not depend on the end
    "optimizer=adafactor",
    "eval_every_steps=null",
)
ENGINES = ("fsdp 2", "single 1", "ddp 2", "fsdp 3", "fsdp_hybrid 4", "fsdp_offload 2")


def on(engine: str) -> list[str]:
    preset, ranks = engine.split()
    return [f"parallelism={preset}", f"launch.processes={ranks}"]


def test_a_run_continues_on_any_engine_and_number_of_ranks(trainctl: Console) -> None:
    trainctl.toy("name=alone", *COMMON, "max_steps=12")
    expected = trace(trainctl, trainctl.run_dir("alone"))
    first, *others = ENGINES
    trainctl.toy(*COMMON, *on(first), "max_steps=2")
    run_dir = trainctl.run_dir()
    for number, engine in enumerate(others, 2):
        trainctl("resume", str(run_dir), *on(engine), f"max_steps={2 * number}")
    found = {row["step"]: row for row in trace(trainctl, run_dir)}
    for row in expected:
        for key in ("loss", "grad_norm"):
            assert found[row["step"]][key] == pytest.approx(row[key], rel=1e-5)
        assert found[row["step"]]["samples"] == row["samples"]


def test_a_resume_on_the_same_ranks_is_exact(trainctl: Console) -> None:
    trainctl.toy("name=whole", *on("fsdp 2"), "scheduler=constant", "max_steps=8")
    trainctl.toy(*on("fsdp 2"), "scheduler=constant", "max_steps=4")
    run_dir, whole = trainctl.run_dir(), trainctl.run_dir("whole")
    trainctl("resume", str(run_dir), "max_steps=8")
    assert weights(run_dir) == weights(whole)


def test_the_export_is_that_of_one_process(trainctl: Console) -> None:
    trainctl.toy()
    run_dir = trainctl.run_dir()
    expected = weights(run_dir)
    shutil.rmtree(run_dir / "export")
    trainctl("resume", str(run_dir), *on("fsdp 2"))
    assert weights(run_dir) == expected
