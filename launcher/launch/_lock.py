"""Lock of the run directory, so that one run at a time uses it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from launcher.errors import LaunchError
from launcher.run_dir import RunDir

# Longest wait for a dead launcher's ranks to exit, in seconds.
GRACE_S = 10.0

# NFS has no flock on a directory: there only the file is locked.
_UNSUPPORTED = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP}


@contextmanager
def locked(run_dir: RunDir, *, patience_s: float = 0.0) -> Iterator[Sequence[int]]:
    """Lock the run directory, and yield the descriptors that hold the lock.

    Args:
        run_dir: The run directory.
        patience_s: Seconds to wait for a running holder.

    Raises:
        LaunchError: Another process holds it, or the directory cannot be written.
    """
    # flock and not a file that exists: the kernel releases it however the holders end. Ranks
    # inherit the descriptors, so that the lock outlives a killed launcher as long as a rank does.
    # Both the directory and the file, because run.lock can be deleted and created again.
    with ExitStack() as stack:
        directory = _open(run_dir, stack, os.O_RDONLY | os.O_DIRECTORY)
        # O_NOFOLLOW, O_NONBLOCK: a link would be written through, and opening a FIFO would block.
        file = _open(run_dir, stack, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise LaunchError(f"{run_dir.lock} must be a regular file, but is not; remove it")
        # A killed launcher's ranks die with it, but need a moment to exit, and hold the lock.
        now = time.monotonic()
        for descriptor in (directory, file):
            _acquire(descriptor, file, run_dir, now + GRACE_S, now + patience_s)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        yield (directory, file)


def name_ranks(lock: Sequence[int], pids: Sequence[int]) -> None:
    # For users, who look for the processes of a run to end them.
    file = lock[-1]
    holder = {**json.loads(os.pread(file, 65_536, 0)), "ranks": list(pids)}
    text = json.dumps(holder).encode()
    os.pwrite(file, text, 0)
    os.ftruncate(file, len(text))


def _open(run_dir: RunDir, stack: ExitStack, flags: int) -> int:
    path = run_dir.path if flags & os.O_DIRECTORY else run_dir.lock
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LaunchError(f"{path} must be a file, but is a symbolic link; remove it") from None
        raise LaunchError(f"cannot lock {path}: {error.strerror}") from error
    stack.callback(os.close, descriptor)
    return descriptor


def _acquire(
    descriptor: int, file: int, run_dir: RunDir, deadline: float, patient_until: float
) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 4096, 0).decode(errors="replace")
            # A running launcher keeps the lock for hours; only a dead one's ranks are waited for.
            now = time.monotonic()
            if now > patient_until and (now > deadline or _alive(holder)):
                raise LaunchError(
                    f"{run_dir.path} is in use by another process: {holder or 'unknown'}; "
                    "wait for it, or stop it"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            if descriptor == file or error.errno not in _UNSUPPORTED:
                raise LaunchError(f"cannot lock {run_dir.path}: {error.strerror}") from error
            return
        else:
            return


def _alive(holder: str) -> bool:
    try:
        facts = json.loads(holder)
        # Process ids of another machine mean nothing here.
        if facts["host"] != socket.gethostname():
            return True
        os.kill(facts["pid"], 0)
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        return False
    except PermissionError:
        # The process exists, and is another user's.
        return True
    return True
