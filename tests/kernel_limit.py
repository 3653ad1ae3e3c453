"""A limit of the kernel on the memory of this process: it counts every byte, also of libraries."""

from __future__ import annotations

import ctypes
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# mallopt's M_MMAP_THRESHOLD: larger blocks are given back to the kernel as soon as they are freed.
_THRESHOLD = -3


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """Let allocations fail that exceed the memory which this process has now by more than this.

    Pages of files do not count: the kernel can drop them.
    """
    ctypes.CDLL(None).mallopt(_THRESHOLD, 1 << 18)
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    limit = int(found[1]) * 1024 + num_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
