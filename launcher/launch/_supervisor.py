"""Supervise the ranks of a run until the last of them has ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from launcher.errors import Hang, Interrupted
from launcher.launch._processes import RankProcess, Waiter
from launcher.launch._signals import handled
from launcher.launch._watch import Watch
from launcher.run_dir import RunDir

# When one rank has failed the others find out at their next collective, and record it. After that
# they wait for nothing useful. All ranks must have ended within five seconds of the failure.
_GRACE_S = 1.5
_TERMINATE_S = 1.0
_TICK_S = 1.0


@dataclass(slots=True)
class Supervisor:
    """Forwards signals to the ranks, ends them when one fails, and reports a hang.

    Attributes:
        stopping: A signal asked the run to end.
        suspended_s: Longest time for which Ctrl-Z stopped the run.
    """

    run_dir: RunDir
    watch: Watch | None
    ranks: list[RankProcess] = field(default_factory=list)
    failed_elsewhere: Callable[[], bool] = lambda: False
    stopping: bool = False
    suspended_s: float = 0.0
    _interrupted: bool = False
    _left: bool = False
    _waiter: Waiter = field(default_factory=Waiter)

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Forward signals to the ranks until all of them have exited."""
        # Only the main thread may set handlers: in the threads of a sweep they stay as they are.
        ours = handled() if threading.current_thread() is threading.main_thread() else []
        before = {number: signal.signal(number, self._forward) for number in ours}
        if ours and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        try:
            yield
        finally:
            # The handlers stay until the last rank is gone: with the default ones a signal would
            # end the launcher, and leave the ranks without it.
            for rank in self.ranks:
                rank.kill()
            while running := self._running():
                self._waiter.wait(running, 1.0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self) -> None:
        """Return when the last rank has ended; raise Hang, or Interrupted after a second Ctrl-C."""
        for rank in self.ranks:
            self._waiter.add(rank)
        self._wait()
        if self._left:
            raise Interrupted("SIGINT received twice: left at once, without saving")

    def explained(self, hang: Hang, timeout_s: float) -> Hang:
        """Return the error, with the time for which the run was stopped if that is the cause."""
        if self.suspended_s < timeout_s:
            return hang
        # The collectives of gloo and NCCL measure wall time, which goes by in a stopped process.
        message = (
            f"{hang}; the run was stopped (Ctrl-Z) for {self.suspended_s:.0f} s, and a collective "
            f"fails after launch.timeout_s={timeout_s:g} s, stopped or not"
        )
        return Hang(message, hang.missing)

    def _wait(self) -> None:
        deadlines: list[tuple[float, signal.Signals]] | None = None
        while running := self._running():
            failed = deadlines is None and any(_failed(rank) for rank in self.ranks)
            if failed or (deadlines is None and self.failed_elsewhere()):
                now = time.monotonic()
                deadlines = [
                    (now + _GRACE_S, signal.SIGTERM),
                    (now + _GRACE_S + _TERMINATE_S, signal.SIGKILL),
                ]
            now = time.monotonic()
            while deadlines and now >= deadlines[0][0]:
                number = deadlines.pop(0)[1]
                for rank in running:
                    rank.kill(number)
            if deadlines is None and self.watch and self.watch.silent(running):
                raise self.watch.report(self.run_dir, self.ranks)
            seconds = self.watch.tick_s if self.watch else _TICK_S
            if deadlines:
                seconds = min(seconds, max(0.0, deadlines[0][0] - now))
            self._waiter.wait(running, seconds)

    def _running(self) -> list[RankProcess]:
        for rank in self.ranks:
            if rank.reap():
                self._waiter.remove(rank)
        return [rank for rank in self.ranks if rank.status is None]

    def _forward(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.stopping = True
        again = number == signal.SIGINT and self._interrupted
        self._interrupted = self._interrupted or number == signal.SIGINT
        self._left = self._left or again
        for rank in self.ranks:
            if again:
                # The user wants to leave now, and a stopped rank reacts to nothing else.
                rank.kill()
            else:
                rank.send(number)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Stop on Ctrl-Z."""
        # The ranks are in sessions of their own, which the terminal's signal does not reach.
        del number, frame
        stopped = time.monotonic()
        for rank in self.ranks:
            rank.send_group(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        # Here after `fg` or `bg`.
        self.suspended_s = max(self.suspended_s, time.monotonic() - stopped)
        for rank in self.ranks:
            rank.send_group(signal.SIGCONT)


def _failed(rank: RankProcess) -> bool:
    # Ranks that were asked to stop (75, 130) have agreed on it: no other waits for them.
    return rank.status not in {None, 0, 75, 130}
