"""launch=slurm, with scripts in place of Slurm's commands that run the job on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import trace, wait_for_step, weights

COMMANDS = Path(__file__).parent / "slurm_bin"
NODES = ("parallelism=ddp", "launch=slurm", "launch.nodes=2", "launch.interface=lo")


class Cluster:
    """Jobs of the stand-ins.

    Attributes:
        folder: Their state.
        variables: Environment with which trainctl finds them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {
            "SLURM_FAKE": str(folder),
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
        }

    def state(self, job: int) -> str:
        return (self.folder / f"{job}.state").read_text().strip()

    def await_end(self, job: int) -> str:
        deadline = time.monotonic() + 120
        # Empty while the stand-in rewrites it.
        while (state := self.state(job)) in {"", "PENDING", "RUNNING"}:
            assert time.monotonic() < deadline, "the job has not ended"
            time.sleep(0.02)
        return state

    def preempt(self, job: int) -> None:
        """Signal the tasks, as before a time limit or at a preemption with a grace time."""
        for pid in (self.folder / f"{job}.tasks").read_text().split():
            os.kill(int(pid), signal.SIGTERM)

    def close(self) -> None:
        for path in self.folder.glob("*.pid"):
            if self.state(int(path.stem)) in {"PENDING", "RUNNING"}:
                environment = {**os.environ, **self.variables}
                subprocess.run(["scancel", path.stem], env=environment, check=False)
                self.await_end(int(path.stem))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    cluster = Cluster(folder)
    yield cluster
    cluster.close()


def test_the_script_has_what_was_requested(trainctl: Console) -> None:
    out, _ = trainctl.toy(
        *NODES,
        "launch.partition=gpu",
        "launch.account=lab",
        "launch.time=1-12:00:00",
        "launch.gpus_per_node=8",
        "launch.cpus_per_task=64",
        'launch.flags=["--exclusive","--comment=two words"]',
        "--dry-run",
    )
    script = out[out.index("#!/bin/sh") :].splitlines()
    requests = [line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")]
    logs = rf"{trainctl.folder}/runs/toy/ID/logs/slurm-%j\.log"
    assert re.fullmatch(rf"--output={logs}", requests.pop(4))
    assert requests == [
        "--job-name=toy",
        "--nodes=2",
        "--ntasks-per-node=1",
        f"--chdir={trainctl.folder}",
        "--open-mode=append",
        "--requeue",
        "--partition=gpu",
        "--account=lab",
        "--time=1-12:00:00",
        "--gpus-per-node=8",
        "--cpus-per-task=64",
        "--signal=USR1@120",
        "--exclusive",
        "'--comment=two words'",
    ]
    [srun] = [line for line in script if line.startswith("srun")]
    assert srun.startswith("srun --kill-on-bad-exit=0 --cpus-per-task=64 ")
    assert srun.endswith(f"-m launcher join {trainctl.folder}/runs/toy/ID")
    assert not (trainctl.folder / "runs").exists()


def test_a_preempted_job_is_queued_again_and_finishes(trainctl: Console, cluster: Cluster) -> None:
    trainctl.toy("name=undisturbed", "parallelism=ddp", "launch.processes=2")
    undisturbed = trainctl.run_dir("undisturbed")
    words = (*NODES, "task.step_s=0.05", "launch.partition=any")
    out, err = trainctl.toy(*words, **cluster.variables)
    assert "submitted job 101 (2 nodes)" in out, err
    assert "cancel:  scancel 101" in out
    run_dir = wait_for_step(trainctl, 3)
    cluster.preempt(101)
    assert cluster.await_end(101) == "COMPLETED"
    log = (run_dir / "logs/slurm-101.log").read_text()
    assert "job 101 is queued again" in log
    assert "train longer with" in log
    # The job does not read what was requested of Slurm; that is no mistake of the user.
    assert "had no effect" not in log
    assert json.loads((run_dir / "result.json").read_text())["status"] == "completed"
    assert trace(trainctl, run_dir) == trace(trainctl, undisturbed)
    assert weights(run_dir) == weights(undisturbed)


def test_waiting_ends_with_the_error_of_the_run(trainctl: Console, cluster: Cluster) -> None:
    words = ("launch=slurm", "launch.wait=true", "task.poison=3")
    _, err = trainctl.toy(*words, status=10, **cluster.variables)
    assert "the loss is nan" in err
    assert cluster.await_end(101) == "FAILED"


@pytest.mark.slow
def test_ctrl_c_cancels_the_job_that_is_waited_for(trainctl: Console, cluster: Cluster) -> None:
    words = toy_words("launch=slurm", "launch.wait=true", "task.step_s=0.1", "max_steps=1000")
    process = trainctl.start("run", *words, **cluster.variables)
    run_dir = wait_for_step(trainctl, 5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "SIGINT received: job 101 is cancelled" in err
    assert "resume with: trainctl resume runs/toy/" in err
    # Not queued again, although its state is saved.
    assert cluster.state(101) == "CANCELLED"
    # A resumed run is another job.
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    words = ("resume", str(run_dir), f"max_steps={last + 2}")
    out, _ = trainctl(*words, status=0, **cluster.variables)
    assert "submitted job 102 (1 node)" in out
    assert "train longer with: trainctl resume runs/toy/" in out.splitlines()[-1]
    assert json.loads((run_dir / "result.json").read_text())["step"] == last + 2


def test_a_refused_submission(trainctl: Console, cluster: Cluster) -> None:
    (cluster.folder / "refuses").touch()
    _, err = trainctl.toy("launch=slurm", "launch.partition=x", status=3, **cluster.variables)
    assert "Invalid partition name specified" in err
    assert "may be deleted" in err


def test_without_slurm(trainctl: Console) -> None:
    _, err = trainctl.toy("launch=slurm", status=3)
    assert "sbatch was not found" in err


@pytest.mark.slow
def test_a_job_that_leaves_no_result(trainctl: Console, cluster: Cluster, tmp_path: Path) -> None:
    """Such as one that Slurm ends before its first task has started."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "srun").write_text("#!/bin/sh\nexit 1\n")
    (broken / "srun").chmod(0o755)
    variables = {**cluster.variables, "PATH": f"{broken}{os.pathsep}{cluster.variables['PATH']}"}
    _, err = trainctl.toy("launch=slurm", "launch.wait=true", status=3, **variables)
    assert "job 101 ended without a result (FAILED); see " in err
