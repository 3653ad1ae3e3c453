"""Requests of this rank to all ranks, from its signals and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from signal import Signals

from launcher.contracts import Request
from launcher.errors import Interrupted, Preempted

_STOPS = {
    Signals.SIGTERM: Request.STOP_SIGTERM,
    Signals.SIGUSR1: Request.STOP_SIGUSR1,
    Signals.SIGINT: Request.STOP_SIGINT,
    Signals.SIGHUP: Request.STOP_SIGHUP,
}


class RankRequests:
    """Requests of this rank, read once per step by the engine."""

    def __init__(
        self, stop: Callable[[], Signals | None], save_every_minutes: float | None
    ) -> None:
        self._stop = stop
        self._interval_s = None if save_every_minutes is None else save_every_minutes * 60
        self._last_save = time.monotonic()

    def __call__(self) -> Request:
        """Return the current requests."""
        request = Request.NONE
        if (signal := self._stop()) is not None:
            # Any other signal that a caller passes has no flag: it is treated as SIGTERM.
            request |= _STOPS.get(signal, Request.STOP_SIGTERM)
        if self._interval_s is not None and self._due():
            request |= Request.SAVE
        return request

    def saved(self) -> None:
        """Restart the interval."""
        # Called on all ranks in the same step: the clock of a single rank would request a save that
        # another rank has just caused.
        self._last_save = time.monotonic()

    def _due(self) -> bool:
        return time.monotonic() - self._last_save >= (self._interval_s or 0)


def stop_signal(requests: Request) -> Signals | None:
    """Return the signal on which a rank ends the run, or None."""
    if requests is Request.NONE:
        return None  # the usual case; operators of a Flag take microseconds
    return next((signal for signal, request in _STOPS.items() if request & requests), None)


def stop_error(signal: Signals, step: int) -> Preempted | Interrupted:
    """Return the error of a run that a signal stopped."""
    kind = Interrupted if signal is Signals.SIGINT else Preempted
    return kind(f"{signal.name} received: stopped after step {step}")
