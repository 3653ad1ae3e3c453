"""Memory that was asked for and not given: how it is recognised, and what is said of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from launcher.errors import OutOfMemory

_SIGNS = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
    "could not create a memory object",
)


def is_refusal(error: BaseException) -> bool:
    """Whether an exception says that memory was asked for and not given."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On the CPU torch has no class for it.
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def refusals_explained(what: Callable[[], str], advice: str) -> Iterator[None]:
    """Turn a refusal into the error that says so.

    Args:
        what: Tells what was being done; asked when it is needed.
        advice: What would take less memory.

    Raises:
        OutOfMemory: Memory was refused.
    """
    try:
        yield
    except Exception as error:
        if not is_refusal(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise OutOfMemory(f"{what()}: out of memory; {advice} ({reason})") from error
