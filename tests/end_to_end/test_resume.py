"""Resume after a kill or a signal: the same numbers as an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Console, toy_words

COMPARED = ("step", "loss", "lr", "grad_norm", "samples", "tokens", "skipped", "eval_loss")


def trace(trainctl: Console, run_dir: Path) -> list[dict[str, Any]]:
    """Return every logged number that is not a time."""
    return [{k: row.get(k) for k in COMPARED} for row in trainctl.rows(run_dir)]


def weights(run_dir: Path) -> bytes:
    return (run_dir / "export" / "weights.pt").read_bytes()


def kill_rank(run_dir: Path, number: int) -> None:
    """Send a signal to the ranks of a run."""
    for pid in json.loads((run_dir / "run.lock").read_text())["ranks"]:
        os.kill(pid, number)


def wait_for_step(trainctl: Console, step: int, name: str = "toy", seconds: float = 60.0) -> Path:
    """Return the run directory once it has logged a step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        metrics = list((trainctl.folder / "runs" / name).glob("*/metrics.jsonl"))
        if metrics and metrics[0].read_text().count("\n") >= step:
            return metrics[0].parent
        time.sleep(0.005)
    pytest.fail("the run did not get there")


@pytest.fixture
def undisturbed(trainctl: Console) -> tuple[list[dict[str, Any]], bytes]:
    """Return trace and weights of an uninterrupted run."""
    trainctl.toy("name=undisturbed")
    run_dir = trainctl.run_dir("undisturbed")
    return trace(trainctl, run_dir), weights(run_dir)


@pytest.mark.parametrize("target", ["launcher", "rank"])
def test_killed_at_any_moment(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes], target: str
) -> None:
    expected, final = undisturbed
    kill_and_resume(trainctl, target, delay=0.0, after_step=6)
    run_dir = trainctl.run_dir()
    assert trace(trainctl, run_dir) == expected
    assert weights(run_dir) == final


@pytest.mark.slow
def test_killed_at_twenty_random_moments(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes]
) -> None:
    expected, final = undisturbed
    chance = random.Random(20)
    for number in range(20):
        process = trainctl.start("run", *toy_words(f"name=toy{number}", "task.step_s=0.02"))
        time.sleep(chance.uniform(1.0, 5.0))
        process.kill()
        process.communicate()
        if not list(trainctl.folder.glob(f"runs/toy{number}/*/config.json")):
            continue  # killed before there was a run
        run_dir = trainctl.run_dir(f"toy{number}")
        while chance.random() < 0.3:  # some runs are killed again while they resume
            process = trainctl.start("resume", str(run_dir))
            time.sleep(chance.uniform(0.5, 4.0))
            process.kill()
            process.communicate()
        if not list(run_dir.glob("checkpoints/step-*")):
            continue  # killed before there was a checkpoint
        trainctl("resume", str(run_dir))
        assert trace(trainctl, run_dir) == expected
        assert weights(run_dir) == final


def kill_and_resume(trainctl: Console, target: str, *, delay: float, after_step: int) -> None:
    process = trainctl.start("run", *toy_words("task.step_s=0.03"))
    run_dir = wait_for_step(trainctl, after_step)
    time.sleep(delay)
    if target == "launcher":
        process.kill()
    else:
        kill_rank(run_dir, signal.SIGKILL)
    process.communicate()
    assert process.returncode == (-9 if target == "launcher" else 137)
    trainctl("resume", str(run_dir))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)
def test_a_signal_finishes_the_step_and_saves_it(
    trainctl: Console,
    undisturbed: tuple[list[dict[str, Any]], bytes],
    number: signal.Signals,
    status: int,
) -> None:
    expected, final = undisturbed
    process = trainctl.start("run", *toy_words("task.step_s=0.05", "checkpoint.every_steps=null"))
    run_dir = wait_for_step(trainctl, 3)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == status
    done = trainctl.rows(run_dir)[-1]["step"]
    assert f"after step {done}" in err
    assert f"trainctl resume runs/toy/{run_dir.name}" in (out + err).splitlines()[-1]
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    trainctl("resume", str(run_dir))
    assert trace(trainctl, run_dir) == expected
    assert weights(run_dir) == final


def test_a_second_ctrl_c_leaves_at_once(trainctl: Console) -> None:
    process = trainctl.start("run", *toy_words("task.step_s=5"))
    deadline = time.monotonic() + 60
    while not list(trainctl.folder.glob("runs/toy/*/logs/rank-0.log")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(2.5)  # the first step has begun
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert time.monotonic() - start < 4


def test_resuming_a_finished_run_changes_nothing(trainctl: Console) -> None:
    trainctl.toy()
    run_dir = trainctl.run_dir()
    before = trace(trainctl, run_dir), weights(run_dir)
    trainctl("resume", str(run_dir))
    assert (trace(trainctl, run_dir), weights(run_dir)) == before


def test_a_finished_run_is_extended(
    trainctl: Console, undisturbed: tuple[list[dict[str, Any]], bytes]
) -> None:
    trainctl.toy("name=long", "max_steps=20", "scheduler=constant")
    trainctl.toy("max_steps=12", "scheduler=constant")
    run_dir = trainctl.run_dir()
    out, _ = trainctl("resume", str(run_dir), "max_steps=20")
    assert "max_steps: 12 -> 20" in out
    steps = {row["step"]: row["loss"] for row in trace(trainctl, run_dir)}
    long = {row["step"]: row["loss"] for row in trace(trainctl, trainctl.run_dir("long"))}
    assert steps == long


def test_a_new_learning_rate_takes_effect(trainctl: Console) -> None:
    trainctl.toy("max_steps=8", "scheduler=constant")
    run_dir = trainctl.run_dir()
    trainctl("resume", str(run_dir), "max_steps=12", "optimizer.lr=0.003")
    rates = {row["step"]: row["lr"] for row in trainctl.rows(run_dir)}
    assert [rates[step] for step in (8, 9, 12)] == [0.01, 0.003, 0.003]


def test_a_change_of_the_result_requires_allow(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    stored = (run_dir / "config.json").read_text()
    _, err = trainctl("resume", str(run_dir), "max_steps=8", "seed=5", status=2)
    assert "seed" in err
    assert "--allow seed" in err
    _, err = trainctl("resume", str(run_dir), "model.width=9", "--allow", "model", status=2)
    assert "model.width" in err
    assert (run_dir / "config.json").read_text() == stored
    trainctl("resume", str(run_dir), "max_steps=8", "seed=5", "--allow", "seed")


def test_a_change_that_the_checkpoint_does_not_fit_is_reverted(trainctl: Console) -> None:
    trainctl.toy()
    run_dir = trainctl.run_dir()
    written = ("config.json", "overrides.txt", "provenance.json")
    before = [(run_dir / name).read_text() for name in written]
    change = ("precision=bf16_pure", "max_steps=16", "--allow", "precision")
    out, err = trainctl("resume", str(run_dir), *change, status=14)
    assert "another model or optimizer" in err
    assert "old settings are restored" in out
    assert [(run_dir / name).read_text() for name in written] == before
    trainctl("resume", str(run_dir), "max_steps=16")
    assert trainctl.rows(run_dir)[-1]["step"] == 16


def test_two_resumes_at_the_same_instant(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    words = ["resume", str(run_dir), "max_steps=40", "checkpoint.every_steps=null"]
    both = [trainctl.start(*words), trainctl.start(*words)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 3]
    assert any("in use by another process" in err for err in errors)
    assert len(trainctl.rows(run_dir)) == 40


@pytest.mark.parametrize("change", ["checkpoint=none", "checkpoint=directory"])
def test_a_run_that_never_saved_is_not_overwritten(trainctl: Console, change: str) -> None:
    process = trainctl.start(
        "run", *toy_words("task.step_s=0.05", change, "checkpoint.every_steps=null")
    )
    run_dir = wait_for_step(trainctl, 2)
    process.kill()
    process.communicate()
    before = contents(run_dir)
    _, err = trainctl("resume", str(run_dir), status=14)
    assert "has no checkpoint to resume from" in err
    assert f"sh {run_dir}/command.sh" in err
    assert "resume with" not in err
    assert contents(run_dir) == before


def test_resume_of_a_finished_run(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    before = contents(run_dir)
    out, _ = trainctl("resume", str(run_dir))
    assert out.startswith("nothing to do: the run is finished (step 4)")
    _, err = trainctl("resume", str(run_dir), "max_steps=3", status=2)
    assert "max_steps: is 3, but the run is at step 4; set a later end" in err
    assert contents(run_dir) == before
    checkpoint = f"{run_dir}/checkpoints/step-00000004"
    _, err = trainctl("resume", checkpoint, status=3)
    assert "is in a run directory; write `trainctl resume runs/toy/" in err
    (run_dir / "export" / "config.json").touch()
    _, err = trainctl("resume", str(run_dir.parent), status=3)
    assert f"did you mean runs/toy/{run_dir.name}?" in err
    (run_dir / "export" / "config.json").unlink()
    for path in (run_dir / "checkpoints").iterdir():
        shutil.rmtree(path)
    trainctl("resume", str(run_dir))
    _, err = trainctl("resume", str(run_dir), "max_steps=8", status=14)
    assert "has no checkpoint to resume from" in err
    assert contents(run_dir).items() <= before.items()


def contents(run_dir: Path) -> dict[str, bytes]:
    """Return every file of a run except its lock."""
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in run_dir.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }


def test_a_run_directory_may_be_linked_moved_and_copied(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    link = trainctl.folder / "latest"
    link.symlink_to(run_dir)
    trainctl("resume", str(link), "max_steps=6")
    trainctl("resume", str(run_dir), "max_steps=8")
    copy = trainctl.folder / "copy"
    shutil.copytree(run_dir, copy)
    moved = run_dir.rename(trainctl.folder / "moved")
    for place in (copy, moved):
        out, _ = trainctl("resume", str(place), "max_steps=10")
        assert "resumed    from step 8" in out
        assert trainctl.rows(place)[-1]["step"] == 10
    assert not list(trainctl.folder.rglob("*.corrupt"))
    # A release that had no run.json knew a run by the name of its directory.
    (moved / "run.json").unlink()
    again = moved.rename(trainctl.folder / "again")
    trainctl("resume", str(again), "max_steps=12")
    assert trainctl.rows(again)[-1]["step"] == 12


def test_a_killed_resume_leaves_no_setting(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    written = ("config.json", "overrides.txt", "provenance.json")
    before = [(run_dir / name).read_text() for name in written]
    change = ("optimizer.lr=0.5", "max_steps=40", "checkpoint.every_steps=null")
    process = trainctl.start("resume", str(run_dir), *change, "task.step_s=0.1", "--allow", "task")
    wait_for_step(trainctl, 6)
    process.kill()
    process.communicate()
    assert [(run_dir / name).read_text() for name in written] != before
    out, _ = trainctl("resume", str(run_dir), "max_steps=8")
    assert f"{' '.join(change)} task.step_s=0.1: not applied" in out
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["optimizer"]["lr"], config["max_steps"]) == (0.01, 8)
    assert config["checkpoint"]["every_steps"] == 4
    # What a checkpoint was saved with stays.
    process = trainctl.start("resume", str(run_dir), "max_steps=90", "optimizer.lr=0.003")
    deadline = time.monotonic() + 60
    while not (run_dir / "checkpoints" / "step-00000012").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    out, _ = trainctl("resume", str(run_dir), "max_steps=16")
    assert "not applied" not in out
    assert json.loads((run_dir / "config.json").read_text())["optimizer"]["lr"] == 0.003


def test_a_preempted_resume_keeps_its_settings(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    words = ("max_steps=40", "task.step_s=0.1", "checkpoint.every_steps=null", "--allow=task")
    process = trainctl.start("resume", str(run_dir), *words)
    wait_for_step(trainctl, 6)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    trainctl("resume", str(run_dir), "task.step_s=0", "--allow=task")
    assert trainctl.rows(run_dir)[-1]["step"] == 40


def test_a_changed_config_is_found(trainctl: Console) -> None:
    trainctl.toy("max_steps=4")
    run_dir = trainctl.run_dir()
    config = run_dir / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"lr": 0.01', '"lr": 0.09'))
    before = contents(run_dir)
    _, err = trainctl("resume", str(run_dir), "max_steps=8", status=2)
    assert "optimizer.lr: is 0.09 in config.json, but 0.01 in the newest checkpoint's copy" in err
    assert contents(run_dir) == before
    config.write_text(text.replace('"seed"', '"extra": 3, "seed"'))
    _, err = trainctl("resume", str(run_dir), status=2)
    assert "extra: is 3 in config.json, but the newest checkpoint's copy does not have it" in err
    assert "resume with" not in err
    config.write_text(text[:-9])
    _, err = trainctl("resume", str(run_dir), status=2)
    assert f"restore it: cp {run_dir}/checkpoints/step-00000004/config.json" in err
    config.write_text(text.replace('"lr": 0.01', '"lr": 0.09'))
    trainctl("resume", str(run_dir), "max_steps=8", "optimizer.lr=0.02")
    assert trainctl.rows(run_dir)[-2]["lr"] == pytest.approx(0.02, rel=0.99)
    _, err = trainctl("resume", str(run_dir), "max_epochs=0.01", status=2)
    assert "max_epochs: ends the run at step 1, but it is at step 8; set a later end" in err


def test_failures_before_the_first_step(trainctl: Console) -> None:
    _, err = trainctl.toy("name=small", "accumulation.samples_per_step=98", status=13)
    assert "resume with" not in err
    assert not list((trainctl.folder / "runs" / "small").iterdir())
    whole = "accumulation.samples_per_step=50"  # the first step meets the bad sample
    words = toy_words("name=poisoned", "task.poison=3", "max_steps=1", whole)
    _, err = trainctl("run", *words, status=10)
    assert "resume with" not in err
    assert "nothing was trained" in err
    assert (trainctl.run_dir("poisoned") / "result.json").exists()


@pytest.mark.parametrize("broken", [b"{", b"[]", b"\xff\xfe", b'{"folder": 3}', b"null"])
def test_damaged_side_files_do_not_matter(trainctl: Console, broken: bytes) -> None:
    trainctl.toy("max_steps=2")
    run_dir = trainctl.run_dir()
    for name in ("env.json", "provenance.json", "result.json"):
        (run_dir / name).write_bytes(broken)
    trainctl("resume", str(run_dir), "max_steps=4")
    assert trainctl.rows(run_dir)[-1]["step"] == 4


def test_the_error_is_said_where_it_cannot_be_written(trainctl: Console) -> None:
    process = trainctl.start("run", *toy_words("task.step_s=0.05", "task.poison=3", "max_steps=90"))
    run_dir = wait_for_step(trainctl, 2)
    shutil.rmtree(run_dir, ignore_errors=True)
    _, err = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in err
    assert "checkpoints" in err or "metrics.jsonl" in err or "the loss is nan" in err
    assert err.endswith(f"{run_dir} was deleted while the run used it\n")


@pytest.mark.parametrize("name", ["result", "logs", "result.json"])
def test_a_file_in_the_place_of_a_folder(trainctl: Console, name: str) -> None:
    trainctl.toy("max_steps=2")
    run_dir = trainctl.run_dir()
    place = run_dir / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if name == "result.json":
        place.mkdir()
    else:
        place.touch()
    _, err = trainctl("resume", str(run_dir), "max_steps=4", status=3)
    assert "Traceback" not in err
    assert f"{run_dir}/{name}" in err
