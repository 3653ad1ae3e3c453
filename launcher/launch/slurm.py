"""Ranks on the nodes of a Slurm job."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.errors import LaunchError, Problem
from launcher.launch import _slurm_job
from launcher.launch._options import NodesOption, join_command
from launcher.run_dir import write_atomically

if TYPE_CHECKING:
    from launcher.contracts import ConfigView
    from launcher.run_dir import RunDir

# Fields that are options of sbatch.
_REQUESTS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "time",
    "gpus_per_node",
    "cpus_per_task",
    "mem",
    "signal",
)
# Slurm signals the tasks before the time limit and at a preemption: the ranks save, and 75 is their
# status. scancel also signals this script, and a cancelled job must not be queued again.
_BODY = """\
cancelled=0
trap 'cancelled=1' TERM
trap : USR1
{srun}
status=$?
if [ $status -eq 75 ] && [ $cancelled -eq 0 ]; then
    echo "trainctl: the state is saved; job $SLURM_JOB_ID is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""


class Slurm(NodesOption):
    """Submit a batch job with one task per node; it continues after a preemption or time limit."""

    kind: Literal["slurm"]
    partition: str | None
    """Partition of the job; null for the cluster's default."""
    account: str | None
    """Account that is charged."""
    qos: str | None
    """Quality of service."""
    constraint: str | None
    """Features that the nodes must have, e.g. `a100`."""
    time: str | None = Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$", examples=["4:00:00", "2-12"])
    """Time limit, as Slurm writes it: `2-12:00:00`, `12:00:00` or `"90"` (minutes)."""
    gpus_per_node: int | None = Field(ge=0, le=1024)
    """GPUs to request on each node; null requests none."""
    cpus_per_task: int | None = Field(gt=0, le=4096)
    """Cores to request on each node, for all of its ranks."""
    mem: str | None = Field(pattern=r"^\d+[KMGT]?$", examples=["64G"])
    """Memory to request on each node, e.g. `64G`; "0" requests all."""
    signal: str | None = Field(pattern=r"^(USR1|TERM)@\d+$", examples=["USR1@120"])
    """Signal to the ranks, and seconds before the time limit at which they get it: time for a
    checkpoint."""
    flags: list[str]
    """Further options of sbatch, e.g. `["--exclusive"]`; also the words after `--`."""
    wait: bool
    """Wait for the job's end, and exit with the run's status; Ctrl-C cancels the job."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.device == "cuda" and self.processes > (self.gpus_per_node or self.processes):
            yield Problem(
                "launch.gpus_per_node",
                f"must be at least launch.processes={self.processes}, one GPU for each rank of a "
                f"node, but is {self.gpus_per_node}",
            )

    @override
    def preview(self, run_dir: RunDir) -> str:
        return f"{run_dir.job_script}, submitted with sbatch:\n{self.script(run_dir)}"

    @override
    def hand_over(self, run_dir: RunDir) -> str:
        logs = run_dir.log(0).parent
        try:
            # Slurm does not create it, and then starts no job.
            logs.mkdir(exist_ok=True)
            write_atomically(run_dir.job_script, self.script(run_dir))
        except OSError as error:
            raise LaunchError(f"cannot write to {run_dir.path}: {error.strerror}") from error
        job = _slurm_job.submit(run_dir)
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        return "\n".join(
            [
                f"submitted job {job} ({nodes}) of the run in {run_dir.path}",
                f"log:     {logs / f'slurm-{job}.log'}",
                f"cancel:  scancel {job}",
            ]
        )

    @override
    def await_end(self, run_dir: RunDir) -> bool:
        if self.wait:
            _slurm_job.await_end(run_dir)
        return self.wait

    def script(self, run_dir: RunDir) -> str:
        """Return the batch script."""
        words = [
            f"--job-name={run_dir.path.parent.name}",
            f"--nodes={self.nodes}",
            "--ntasks-per-node=1",
            f"--chdir={Path.cwd()}",
            f"--output={run_dir.log(0).parent / 'slurm-%j.log'}",
            # A job that is queued again continues the log of its number.
            "--open-mode=append",
            "--requeue",
        ]
        given = {name: getattr(self, name) for name in _REQUESTS}
        words += [
            f"--{name.replace('_', '-')}={value}"
            for name, value in given.items()
            if value is not None
        ]
        # Not ended by the first node whose ranks have saved: the others may still be writing.
        srun = ["srun", "--kill-on-bad-exit=0"]
        if self.cpus_per_task is not None:
            # srun does not inherit it since Slurm 22.05.
            srun.append(f"--cpus-per-task={self.cpus_per_task}")
        lines = [f"#SBATCH {shlex.quote(word)}" for word in [*words, *self.flags]]
        body = _BODY.format(srun=shlex.join([*srun, *join_command(run_dir)]))
        return "\n".join(["#!/bin/sh", *lines, body])
