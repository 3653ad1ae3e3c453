"""Signals of a launcher before it has ranks, and of the ranks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from launcher.errors import Interrupted, Preempted

# Signals on which a run saves and ends; SIGUSR1 is Slurm's warning before a time limit.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Signal on which a rank writes the Python stacks of its threads to its log.
DUMP = signal.SIGUSR2


def unblock() -> None:
    """Let signals through again: a launcher starts its processes with these blocked."""
    # The ranks of a program would inherit it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOPPING, DUMP])


def exit_status(status: int) -> int:
    """Return the status of a process as a shell gives it; Python's is negative for a signal."""
    return status if status >= 0 else 128 - status


def handled() -> list[signal.Signals]:
    """Return the stopping signals that this process does not ignore."""
    # nohup ignores SIGHUP: installing a handler would end the run with the terminal.
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


class _Received(BaseException):
    """A stopping signal; no Exception, because libraries catch those in their imports."""


@contextmanager
def signals_end_launch() -> Iterator[None]:
    """End a launch that has no ranks yet; see `launcher.launch.signals_end_launch`."""
    received: list[str] = []

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number).name)
        raise _Received

    # Only the main thread may set handlers: in others (a sweep's workers, notebooks) signals stay
    # as they are. SIGINT raises KeyboardInterrupt without our help.
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in handled() if number != signal.SIGINT] if main else []
    before = {number: signal.signal(number, end) for number in ours}
    try:
        yield
    except BaseException:
        # Not `except _Received`: a library may fail in its own clean-up and raise that instead.
        if not received:
            raise
        message = f"{received[0]} received while no rank was running; nothing was lost"
        raise Preempted(message) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopFlag:
    """First signal that requested the end of the run; a second Ctrl-C exits at once."""

    # The handler only sets a flag, which the loop reads between steps: saving inside of a handler
    # would run in the middle of a step, and collectives there would not match the other ranks'.

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def __call__(self) -> signal.Signals | None:
        """Return the signal, or None."""
        return self._received

    def install(self) -> None:
        """Install the handlers; must be called in the main thread."""
        for number in handled():
            signal.signal(number, self._note)
        # The launcher starts ranks with these blocked, so that none arrives before its handler.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._received is signal.SIGINT:
            # Without clean-up, which can take minutes; published checkpoints stay intact.
            os._exit(Interrupted.exit_status)
        self._received = self._received or signal.Signals(number)
