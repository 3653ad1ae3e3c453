"""Submit a Slurm job, wait for its end, cancel it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from launcher.errors import Interrupted, LaunchError, Preempted
from launcher.run_dir import write_atomically

if TYPE_CHECKING:
    from launcher.run_dir import RunDir

# squeue loads the cluster's controller: asked seldom, and often only near the end.
_SELDOM_S, _OFTEN_S, _TICK_S = 10.0, 1.0, 0.2
# After scancel: Slurm itself kills after KillWait, 30 s by default.
_CANCEL_S = 90.0
# A file of another node is seen late on a network file system.
_RESULT_S = 10.0
_COMMAND_S = 60.0
_ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
_GONE = "gone"


def submit(run_dir: RunDir) -> str:
    """Submit RUN_DIR/job.sh, and return the job's number, which slurm.json records.

    Raises:
        LaunchError: sbatch is not installed, or refuses the job.
    """
    path = run_dir.job_script
    if shutil.which("sbatch") is None:
        raise LaunchError(
            f"sbatch was not found: launch=slurm works where Slurm is installed; {path} is the "
            "script to submit there"
        )
    before = _stamp(run_dir)
    done = _call("sbatch", "--parsable", str(path))
    if done.returncode != 0:
        raise LaunchError(f"sbatch refused {path}: {done.stderr.strip() or done.returncode}")
    # NUMBER;CLUSTER where there are several clusters.
    job = done.stdout.strip().partition(";")[0]
    write_atomically(run_dir.slurm, json.dumps({"job": job, "result_before": before}) + "\n")
    return job


def await_end(run_dir: RunDir) -> None:
    """Return when the job has left the queue, with its result in RUN_DIR/result.json.

    Raises:
        LaunchError: The job ended without a result.
        Interrupted: Ctrl-C: the job is cancelled.
        Preempted: SIGTERM: the job is cancelled.
    """
    record = json.loads(run_dir.slurm.read_text(encoding="utf-8"))
    job = _Job(run_dir, record["job"], record["result_before"])
    log = run_dir.log(0).with_name(f"slurm-{job.number}.log")
    with _stopping_signals() as received:
        state = job.await_end(received)
        if received:
            raise job.cancelled(received)
    deadline = time.monotonic() + _RESULT_S
    while not job.has_result():
        if time.monotonic() > deadline:
            how = "" if state == _GONE else f" ({state})"
            raise LaunchError(f"job {job.number} ended without a result{how}; see {log}")
        time.sleep(_TICK_S)


@dataclass(frozen=True, slots=True)
class _Job:
    """A submitted job.

    Attributes:
        run_dir: Its run.
        number: Its id in Slurm.
        before: `_stamp` before it was submitted.
    """

    run_dir: RunDir
    number: str
    before: int | None

    def await_end(self, received: list[signal.Signals], seconds: float | None = None) -> str:
        """Return the job's state when it has ended, after a signal or after some seconds."""
        began = asked = time.monotonic()
        seen, state = self.before, "PENDING"
        signals = len(received)
        while len(received) == signals:
            now, stamp = time.monotonic(), _stamp(self.run_dir)
            if self.has_result() and self._is_complete():
                return "COMPLETED"
            # Any other result may be that of a job that is queued again.
            soon = self.has_result() or seconds is not None
            if stamp != seen or now > asked + (_OFTEN_S if soon else _SELDOM_S):
                seen, asked, state = stamp, now, self._state() or state
            if state in {*_ENDED, _GONE} or (seconds is not None and now > began + seconds):
                return state
            time.sleep(_TICK_S)
        return state

    def cancelled(self, received: list[signal.Signals]) -> Interrupted | Preempted:
        """Cancel the job, wait for its end, and return what to raise."""
        name = received[0].name
        _call("scancel", self.number)
        state = self.await_end(received, _CANCEL_S)
        text = f"{name} received: job {self.number} is cancelled"
        if state not in {*_ENDED, _GONE}:
            text += f", but squeue still shows it as {state}"
        return Interrupted(text) if received[0] is signal.SIGINT else Preempted(text)

    def has_result(self) -> bool:
        """Return True if the run has written a result since the job was submitted."""
        return _stamp(self.run_dir) not in {None, self.before}

    def _is_complete(self) -> bool:
        try:
            values = json.loads(self.run_dir.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(values["status"] == "completed")

    def _state(self) -> str | None:
        """Return the job's state; None if Slurm does not answer."""
        words = ("--noheader", "--states=all", "--format=%T", f"--jobs={self.number}")
        done = _call("squeue", *words)
        if done.returncode != 0:
            # Slurm forgets jobs some minutes after their end.
            return _GONE if "Invalid job id" in done.stderr else None
        return next(iter(done.stdout.split()), _GONE)


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))


def _stamp(run_dir: RunDir) -> int | None:
    """Return the time of result.json, which a later one does not have."""
    try:
        return run_dir.result.stat().st_mtime_ns
    except OSError:
        return None


@contextmanager
def _stopping_signals() -> Iterator[list[signal.Signals]]:
    """Collect Ctrl-C and SIGTERM."""
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number))

    # Only the main thread may set handlers: in the threads of a sweep they stay as they are.
    main = threading.current_thread() is threading.main_thread()
    ours = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, note) for number in ours}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
