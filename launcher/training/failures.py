"""Close everything after a failure; convert errors of exhausted memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator

import torch

from launcher.errors import OutOfMemory

_log = logging.getLogger("trainctl.run")


@contextlib.contextmanager
def closing(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` once at the end; after an error its failure is only logged."""
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
    """Call every closer in order, even if one fails, and then raise the last failure."""
    with contextlib.ExitStack() as stack:
        for close in reversed(list(closers)):
            stack.callback(close)


# Messages of torch's CPU allocator, the C library, Python's threads and oneDNN. On the CPU torch
# has no exception class for exhausted memory.
_SIGNS = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception reports that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On the CPU torch has no class for it.
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def out_of_memory_context(what: Callable[[], str], advice: str) -> Iterator[None]:
    """Convert every error of exhausted memory to `OutOfMemory`, with an activity and advice."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise OutOfMemory(f"{what()}: out of memory; {advice} ({reason})") from error
