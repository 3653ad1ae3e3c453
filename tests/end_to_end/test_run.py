"""The files of a run, and the errors that end one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from launcher import errors
from tests.conftest import Console, toy_words


def commit_a_file(folder: Path) -> str:
    """Make the folder a git repository; return its commit."""

    def git(*words: str) -> str:
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(folder), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (folder / "train.txt").write_text("as committed\n")
    git("init", "-q")
    git("add", "train.txt")
    git("commit", "-qm", "First")
    return git("rev-parse", "HEAD")


def test_the_run_directory(trainctl_as_installed: Console) -> None:
    trainctl = trainctl_as_installed
    commit = commit_a_file(trainctl.folder)
    (trainctl.folder / "train.txt").write_text("changed\n")
    out, _ = trainctl.toy("seed=1")
    run_dir = trainctl.run_dir()
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        "config.json",
        "run.json",
        "provenance.json",
        "overrides.txt",
        "env.json",
        "uncommitted.diff",
        "command.sh",
        "run.lock",
        "result.json",
        "result",
        "references.json",
        "metrics.jsonl",
        "logs",
        "checkpoints",
        "export",
    }
    rows = trainctl.rows(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {"loss", "lr", "grad_norm", "tokens_per_s"} <= rows[0].keys()
    assert [row["step"] for row in rows if "eval_loss" in row] == [5, 10, 12]
    assert rows[-1]["loss"] < rows[0]["loss"]
    result = json.loads((run_dir / "result.json").read_text())
    scores = {"eval_loss": rows[-1]["eval_loss"]}
    references = {"documents": 5.0}
    outcome = {"step": 12, "scores": scores, "references": references, "sample": "abc"}
    best = min((row["eval_loss"], row["step"]) for row in rows if "eval_loss" in row)
    outcome |= {"stopped": None, "best": {"step": best[1], "eval_loss": best[0]}}
    assert result == result | outcome | {"status": "completed", "exit_status": 0}
    assert result["export"] == "export"
    assert 0 < result["duration_s"] < 300
    rank = json.loads((run_dir / "result" / "rank-0.json").read_text())
    assert rank == rank | outcome | {"rank": 0}
    env = json.loads((run_dir / "env.json").read_text())
    assert env["git"]["commit"] == commit
    assert (env["git"]["dirty"], env["git"]["changed"]) == (True, ["train.txt"])
    assert "+changed" in (run_dir / "uncommitted.diff").read_text()
    assert {"torch", "hydra-core", "numpy"} <= env["packages"].keys()
    assert env["cpu"]
    [launch] = env["launches"]
    assert launch["started"] < launch["ended"]
    assert launch["duration_s"] >= result["duration_s"]
    assert "sample:\nabc\n" in out
    assert "seed=1" in (run_dir / "overrides.txt").read_text().splitlines()
    assert json.loads((run_dir / "provenance.json").read_text())["seed"].endswith("seed=1")
    assert "4 samples (48 tokens) per step = micro-batch 2 × accumulation 2 × ranks 1" in out
    assert out.splitlines()[-1].endswith(f"trainctl resume runs/toy/{run_dir.name} max_steps=24")


def test_same_seed_same_run_and_another_seed_another(trainctl: Console) -> None:
    losses = []
    for number, seed in enumerate([3, 3, 4]):
        trainctl.toy(f"name=s{number}", f"seed={seed}")
        losses.append([row["loss"] for row in trainctl.rows(trainctl.run_dir(f"s{number}"))])
    assert losses[0] == losses[1] != losses[2]


def test_a_poisoned_batch_ends_the_run_and_is_named(trainctl: Console) -> None:
    _, err = trainctl.toy("task.poison=17", status=10)
    assert "made-up/17" in err
    assert "Traceback" not in err
    run_dir = trainctl.run_dir()
    rows = trainctl.rows(run_dir)
    assert f"step {rows[-1]['step'] + 1}" in err
    assert all(isinstance(row["loss"], float) for row in rows)
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["status"], result["error"], result["exit_status"]) == ("failed", "NonFinite", 10)
    error = errors.revive(result)
    assert isinstance(error, errors.NonFinite)
    assert 17 in error.indices


def test_a_poisoned_batch_can_be_skipped(trainctl: Console) -> None:
    trainctl.toy("task.poison=17", "on_nonfinite=skip", "max_steps=30")
    rows = trainctl.rows(trainctl.run_dir())
    skipped = [row for row in rows if row["loss"] is None]
    assert rows[-1]["skipped"] == len(skipped) > 0
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_epochs_end_the_run_with_a_short_window(trainctl: Console) -> None:
    trainctl.toy("max_steps=null", "max_epochs=1", "data.documents=13")
    rows = trainctl.rows(trainctl.run_dir())
    assert [row["samples"] for row in rows] == [4, 8, 12, 13]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["data.documents=3"], 13, "3 samples"),
        (["run_root=/proc/nowhere"], 3, "run_root="),
        (["launch.device=cuda"], 3, "but is cuda"),
        (["optimizer.no_decay=[nothing]"], 2, "nothing"),
        (["optimizer.groups.no_decay=[nothing]"], 2, "nothing"),
    ],
)
def test_bad_input(trainctl: Console, words: list[str], status: int, message: str) -> None:
    _, err = trainctl.toy(*words, status=status)
    assert message in err
    assert "Traceback" not in err


def test_a_file_where_the_runs_should_go(trainctl: Console) -> None:
    (trainctl.folder / "runs").write_text("in the way")
    _, err = trainctl.toy(status=3)
    assert "cannot make a run directory" in err


def test_dry_run_starts_nothing(trainctl: Console) -> None:
    out, _ = trainctl.toy("--dry-run")
    assert "launcher.launch._worker" in out
    assert "micro-batch 2 × accumulation 2" in out
    assert not (trainctl.folder / "runs").exists()


def test_simultaneous_launches_never_share_a_directory(trainctl: Console) -> None:
    words = toy_words("max_steps=1", "eval_every_steps=null", "checkpoint=none")
    words = [word for word in words if not word.startswith("checkpoint.every")]
    both = [trainctl.start("run", *words) for _ in range(3)]
    for process in both:
        process.communicate()
        assert process.returncode == 0
    assert len(list((trainctl.folder / "runs" / "toy").iterdir())) == 3


def test_multirun_is_checked_whole_before_the_first_job(trainctl: Console) -> None:
    _, err = trainctl("run", "-m", *toy_words("optimizer.lr=0.01,-1"), status=2)
    assert "optimizer.lr" in err
    assert not (trainctl.folder / "runs").exists()


def test_multirun_runs_every_job(trainctl: Console) -> None:
    """The first one fails: its error is that of the command, after the others have ended."""
    words = toy_words("task.poison=17,-1", "max_steps=8")
    out, err = trainctl("run", "-m", *words, status=10)
    runs = [p for p in (trainctl.folder / "runs/toy").iterdir() if (p / "config.json").exists()]
    [summary] = (trainctl.folder / "runs/toy").glob("sweep-*/summary.json")
    first, second = json.loads(summary.read_text())
    assert {first["run"], second["run"]} == {str(path) for path in runs}
    assert (first["status"], first["exit_status"]) == ("failed", 10)
    assert first["error"].startswith("NonFinite: ")
    assert (second["status"], second["job"], second["of"]) == ("completed", 2, 2)
    assert second["value"] > 0
    assert [out.count(f"job {number}/2    name=toy ") for number in (1, 2)] == [1, 1]
    assert "job 1/2    failed: " in err
    lines = out.splitlines()
    assert lines[-4].split() == ["job", "status", second["objective"], "run", "overrides"]
    assert lines[-3].endswith(f"{Path(first['run']).name}  task.poison=17")
    assert lines[-1] == f"written to {summary.relative_to(trainctl.folder)}"


def test_disk_full_in_mid_save(trainctl: Console) -> None:
    disk = trainctl.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        # One checkpoint of 3 × 26 × 2 × 4000 floats needs about 2.5 MB.
        words = ("model.width=1000", f"run_root={disk}", "checkpoint.every_steps=4")
        trainctl.toy(
            "model.width=500", f"run_root={disk}", "max_steps=4", "checkpoint.export=false"
        )
        _, err = trainctl.toy(*words, "name=big", "model.width=4000", status=14)
        assert "No space left" in err
        assert "Traceback" not in err
        big = next((disk / "big").iterdir())
        assert not [p for p in (big / "checkpoints").iterdir() if p.name.startswith("step-")]
        small = next((disk / "toy").iterdir())
        assert (small / "checkpoints" / "step-00000004" / "manifest.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_users_module_does_not_shadow_ours(trainctl_as_installed: Console) -> None:
    trainctl = trainctl_as_installed
    for name in ("random.py", "launcher.py", "torch.py"):
        (trainctl.folder / name).write_text("raise SystemExit('shadowed')")
    trainctl.toy("max_steps=1", "checkpoint.every_steps=null")
    assert Path(trainctl.run_dir() / "result.json").exists()
