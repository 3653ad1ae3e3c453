"""Closes everything that a run holds, whatever fails on the way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator

_log = logging.getLogger("trainctl.run")


@contextlib.contextmanager
def closing(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` once at the end.

    After an error, a failure of `close` is only logged: it must not hide that error.
    """
    try:
        yield
    except BaseException:
        try:
            close()
        except Exception:  # noqa: BLE001 - whatever it is, the error that ended the run goes first
            _log.exception("closing failed as well, after the error that ended the run")
        raise
    close()


def close_all(closers: Iterable[Callable[[], None]]) -> None:
    """Call every closer in order, even if one fails; the last failure is raised afterwards."""
    with contextlib.ExitStack() as stack:
        for close in reversed(list(closers)):
            stack.callback(close)
