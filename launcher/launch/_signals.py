"""Signals of a launcher and of its ranks.

A rank's handler only sets a flag, which the loop reads between steps. The launcher forwards
signals to its ranks (`_supervisor`); as long as it has none, they end it as they would end a run.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from launcher.errors import Interrupted, Preempted

# Signals on which a run saves and ends.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Signal on which a rank writes the Python stacks of its threads to its log.
DUMP = signal.SIGUSR2


def handled() -> list[signal.Signals]:
    """Return the stopping signals that this process does not ignore, as under nohup."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


class _Received(BaseException):
    """A stopping signal; no Exception, since libraries catch those while they import or compose."""


@contextmanager
def signals_end_launch() -> Iterator[None]:
    """End a launch with the status of a preempted run while there is no rank to forward to.

    Raises:
        Preempted: A signal came; SIGINT stays a KeyboardInterrupt.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise _Received(signal.Signals(number).name)

    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in handled() if number != signal.SIGINT] if main else []
    before = {number: signal.signal(number, end) for number in ours}
    try:
        yield
    except _Received as received:
        message = f"{received} received while no rank was running; nothing was lost"
        raise Preempted(message) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopFlag:
    """The first signal that requested the end of the run.

    SIGTERM, SIGHUP, SIGUSR1 (Slurm's warning) and SIGINT (Ctrl-C) are noted; a second Ctrl-C leaves
    at once.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def __call__(self) -> signal.Signals | None:
        """The signal, or None as long as none came."""
        return self._received

    def install(self) -> None:
        """Take over the signals of this process; to be called in the main thread."""
        for number in handled():
            signal.signal(number, self._note)
        # The launcher starts ranks with these blocked, so that none arrives before its handler.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._received is signal.SIGINT:
            # No clean-up: the user wants to leave now, and published checkpoints stay intact.
            os._exit(Interrupted.exit_status)
        self._received = self._received or signal.Signals(number)
