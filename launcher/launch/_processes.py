"""Processes that a launcher starts, one per rank: start, signal, wait, end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launcher.errors import LaunchError
from launcher.launch._signals import DUMP, STOPPING

_POLL_S = 0.05


@dataclass(slots=True, eq=False)
class RankProcess:
    """Process of a rank, in its own session.

    Attributes:
        status: Exit status, -n if signal n ended it; None while it runs.
        ended: When its end was seen, in seconds since the epoch.
        killed: True if the launcher ended it.
    """

    rank: int
    process: subprocess.Popen[bytes]
    status: int | None = None
    ended: float = 0.0
    killed: bool = False

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self.process.pid

    def send(self, number: int) -> None:
        """Send a signal, if the process runs."""
        # os.kill, because Popen.send_signal reaps a process that has ended: then its id is free,
        # and `reap` could not kill its children any more.
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def send_group(self, number: int) -> None:
        """Send a signal to the process and its children, if it runs."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.killed = self.killed or self.status is None
        self.send(number)

    def reap(self) -> bool:
        """Return True when the process has ended; kill its children then."""
        if self.status is None and _has_ended(self.pid):
            # Data workers, of the same group. Before `wait` frees the id, which is the group's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.status, self.ended = self.process.wait(), time.time()
        return self.status is not None


def _has_ended(pid: int) -> bool:
    # WNOWAIT leaves a zombie, which keeps the process id from being reused.
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, pid, options) is not None


@dataclass(slots=True)
class Waiter:
    """Wait until a process ends or a timeout."""

    _descriptors: dict[RankProcess, int] = field(default_factory=dict)

    def add(self, rank: RankProcess) -> None:
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # a sandbox may refuse the call
                self._descriptors[rank] = os.pidfd_open(rank.pid)

    def remove(self, rank: RankProcess) -> None:
        if rank in self._descriptors:
            os.close(self._descriptors.pop(rank))

    def wait(self, running: Sequence[RankProcess], seconds: float) -> None:
        """Return when one of the processes has ended, or after the given seconds."""
        # Not Popen.wait(timeout), which waits for one process and polls in intervals that grow to
        # 50 ms. Signal handlers run during both waits.
        if any(rank not in self._descriptors for rank in running):
            time.sleep(min(seconds, _POLL_S))
            return
        poll = select.poll()
        for rank in running:
            poll.register(self._descriptors[rank], select.POLLIN)
        poll.poll(seconds * 1000)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block signals while ranks are started."""
    # A rank inherits the mask, so that a signal before its handlers are installed is kept and not
    # fatal. A signal to the launcher is kept until there are ranks to forward it to.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*STOPPING, DUMP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    rank: int,
    folder: str | None,
    descriptors: Sequence[int],
    output: IO[bytes] | None,
) -> RankProcess:
    """Start a rank, under `signals_held`; None for folder or output means the launcher's."""
    try:
        # In its own session Ctrl-C reaches the rank once, from the launcher, and not a second
        # time from the terminal.
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            start_new_session=True,
            pass_fds=descriptors,
            stdout=output,
            stderr=output,
        )
    except OSError as error:
        raise LaunchError(f"cannot start {command[0]}: {error.strerror}") from error
    return RankProcess(rank, process)


def process_state(pid: int) -> tuple[str, float] | None:
    """Return a process's state (`R`, `S`, `D`, `T`, …) and its CPU seconds; None without /proc."""
    # From the last ")", because the second field is the program's name, which may contain spaces.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waits_for_disk(pid: int) -> bool:
    """Return True if a thread of a process is in an uninterruptible wait, as in fsync."""
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            fields = task.read_text(encoding="utf-8").rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if fields[0] == "D":
            return True
    return False
