"""A process that imports torch while the launcher composes the config, to become rank 0.

It receives the run directory and the rank's file descriptors through a socket, or is killed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from launcher.launch._environment import EARLY_FD, LAUNCHER_PID, common_to_ranks, without_rank
from launcher.launch._processes import RankProcess, signals_held, start_process
from launcher.run_dir import RunDir

# Importing torch and transformers takes seconds, in which the launcher composes the config.
WORKER = "launcher.launch._worker"
_MESSAGE_BYTES = 1 << 20


class EarlyRank:
    """Starts the process, and kills it unless it becomes rank 0 (launcher's side).

    Args:
        folder: Its working directory; None for ours.
    """

    def __init__(self, folder: str | None = None) -> None:
        # -P: a launcher/ or a random.py in the user's folder must not be taken for ours or
        # Python's.
        self._command = [sys.executable, "-P", "-m", WORKER]
        self._environment = {**without_rank(), **common_to_ranks()}
        here = os.getcwd()  # noqa: PTH109 - as a string
        self._folder = here if folder is None else folder
        self._socket, theirs = socket.socketpair()
        with theirs, signals_held():
            self._process: RankProcess | None = start_process(
                self._command,
                {
                    **self._environment,
                    LAUNCHER_PID: str(os.getpid()),
                    EARLY_FD: str(theirs.fileno()),
                },
                rank=0,
                folder=folder,
                descriptors=[theirs.fileno()],
                output=None,
            )

    def take(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        variables: Mapping[str, str],
        folder: str | None,
        descriptors: Sequence[int],
    ) -> RankProcess | None:
        """Make the process rank 0 of a run; return None if rank 0 must be started as usual.

        Args:
            command: Command of a rank: the worker and the run directory.
            environment: Environment that a rank starts with.
            variables: Variables to set in addition; values may name descriptors.
            folder: Working directory; None for the launcher's.
            descriptors: File descriptors that the rank inherits.
        """
        # Libraries read variables such as OMP_NUM_THREADS when they are imported: setting them in
        # the process now would have no effect.
        *program, path = command
        fits = program == self._command and environment == self._environment
        wanted = os.getcwd() if folder is None else folder  # noqa: PTH109 - as a string
        if not fits or wanted != self._folder or self._process is None:
            return None
        message = {"path": path, "variables": variables, "descriptors": list(descriptors)}
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], list(descriptors))
        except OSError:
            # The process has died, of an import that fails for example. A new rank reports why.
            return None
        process, self._process = self._process, None
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process unless it became rank 0."""
        self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.process.wait()
            self._process = None


def folder_of(run_dir: RunDir) -> str | None:
    """Return the folder of the first launch; None if it is not known or does not exist."""
    # Relative paths of the config belong to it, and a resume may be called from anywhere.
    try:
        folder = json.loads(run_dir.env.read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return folder if isinstance(folder, str) and Path(folder).is_dir() else None


def wait_for_run() -> str | None:
    """Import what every run needs and wait for the run directory (rank's side); None: no run."""
    connection = socket.socket(fileno=int(os.environ.pop(EARLY_FD)))
    with _OutputHeld() as output, suppress(Exception):
        # An import that fails here fails again, and is reported, where it is needed.
        _import()
    with connection:
        data, received, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 64)
    # The launcher closed the socket: an error, or a config that needs another process.
    if not data:
        return None
    output.release()
    message = json.loads(data)
    given = {str(old): str(new) for old, new in zip(message["descriptors"], received, strict=True)}
    # Descriptors from a socket are inheritable: a program that the rank starts would hold the lock
    # of the run directory beyond the run.
    for descriptor in received:
        os.set_inheritable(descriptor, False)
    for name, value in message["variables"].items():
        # The numbers of file descriptors are others here.
        os.environ[name] = given[value] if name.endswith("_FD") and value else value
    path: str = message["path"]
    return path


def _import() -> None:
    from launcher.launch._lazy_dynamo import import_torch

    import_torch()
    import launcher.training.runner  # noqa: F401


class _OutputHeld:
    """Buffers the output of imports, which must not be seen if the process is killed."""

    def __enter__(self) -> Self:
        self._held = os.memfd_create("output") if hasattr(os, "memfd_create") else -1
        self._before = [os.dup(1), os.dup(2)] if self._held >= 0 else []
        # The descriptors and not sys.stdout: C libraries print, too.
        for number in (1, 2) if self._before else ():
            os.dup2(self._held, number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), self._before, strict=False):
            os.dup2(before, number)
            os.close(before)

    def release(self) -> None:
        # To stderr, because what imports print is never a result.
        if self._held >= 0:
            os.lseek(self._held, 0, os.SEEK_SET)
            while text := os.read(self._held, 1 << 16):
                os.write(2, text)
            os.close(self._held)
