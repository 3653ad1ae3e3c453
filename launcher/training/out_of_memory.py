"""Detection of out-of-memory errors."""

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


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On the CPU torch has no class for it.
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def out_of_memory_context(what: Callable[[], str], advice: str) -> Iterator[None]:
    """Turn whatever says that memory ran out into `OutOfMemory`.

    Args:
        what: Returns what was being done; called when it is needed.
        advice: What would take less memory.

    Raises:
        OutOfMemory: Memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise OutOfMemory(f"{what()}: out of memory; {advice} ({reason})") from error
