"""One run directory, one run: a flock that dies with its holders."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.errors import LaunchError
from launcher.run_dir import RunDir

GRACE_S = 10.0
"""How long to wait for a holder to go: the ranks of a killed launcher need a moment to die."""


@contextmanager
def locked(run_dir: RunDir) -> Iterator[int]:
    """Hold the run directory.

    Yields:
        The descriptor that holds the lock; ranks inherit it, so that the lock outlives a killed
        launcher for exactly as long as one of its ranks does.

    Raises:
        LaunchError: Another process holds it, or the directory cannot be written.
    """
    try:
        descriptor = os.open(run_dir.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LaunchError(f"cannot lock {run_dir.lock}: {error.strerror}") from error
    try:
        _acquire(descriptor, run_dir)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, run_dir: RunDir) -> None:
    deadline = time.monotonic() + GRACE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
            # A living launcher keeps its run for hours: only the dead are worth waiting for.
            if time.monotonic() > deadline or _alive(holder):
                raise LaunchError(
                    f"{run_dir.path} is in use by another process: {holder or 'unknown'}; "
                    "wait for it, or stop it"
                ) from None
            time.sleep(0.05)
        else:
            return


def _alive(holder: str) -> bool:
    try:
        facts = json.loads(holder)
        if facts["host"] != socket.gethostname():
            return True
        os.kill(facts["pid"], 0)
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
