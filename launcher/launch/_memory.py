"""Limit and peak use of the memory of a rank's device, and of this machine."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from launcher.contracts import MicroBatchSearch

if TYPE_CHECKING:
    import torch

_GIB = 2**30
# Limit, use, and the part of the use that the kernel reclaims when needed (page cache), in versions
# 2 and 1 of control groups. Without the last, a machine that has read a large file looks full.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class Memory(Protocol):
    """Memory of a rank's device."""

    limit: float  # bytes, less the margin

    def impose(self) -> None:
        """Enforce the limit where the device can."""

    def peak(self) -> float:
        """Return the most bytes that the process has used."""


def memory_of(device: str, search: MicroBatchSearch) -> Memory:
    if device.startswith("cuda"):
        import torch

        return CudaMemory(torch.device(device), search)
    return HostMemory(search)


class CudaMemory(Memory):
    """Memory that torch reserves on a CUDA device."""

    def __init__(self, device: torch.device, search: MicroBatchSearch) -> None:
        import torch

        self._device = device
        free, self._total = torch.cuda.mem_get_info(device)
        given = search.memory_limit_gib
        self.limit = (free if given is None else given * _GIB) * (1 - search.memory_margin)

    @override
    def impose(self) -> None:
        import torch

        # torch then raises OutOfMemoryError at the limit, instead of taking memory that other
        # processes of the device will need.
        share = min(1.0, self.limit / self._total)
        torch.cuda.set_per_process_memory_fraction(share, self._device)

    @override
    def peak(self) -> float:
        import torch

        # Reserved, not allocated: memory lost to fragmentation is used as well.
        return float(torch.cuda.max_memory_reserved(self._device))


class HostMemory(Memory):
    """Resident memory of this process, for the CPU and devices that share its memory."""

    def __init__(self, search: MicroBatchSearch) -> None:
        given = search.memory_limit_gib
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        limit = available_bytes() / ranks_here if given is None else given * _GIB
        self.limit = limit * (1 - search.memory_margin)

    @override
    def impose(self) -> None:
        """Do nothing: the limit is only compared with the peak."""
        # RLIMIT_AS would count address space, of which CUDA and mmap reserve far more than they
        # use. A trial that exceeds its control group is killed by the kernel.

    @override
    def peak(self) -> float:
        # Not ru_maxrss where there is VmHWM: across exec it includes the launcher's peak.
        if (high_water := _kib_values(Path("/proc/self/status")).get("VmHWM")) is not None:
            return float(high_water)
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be used without swapping and within all control groups."""
    free = [max(0, limit - used) for limit, used in _control_groups(root)]
    if (available := _kib_values(root / "proc/meminfo").get("MemAvailable")) is not None:
        free.append(available)
    return min(free, default=_physical_bytes())


def total_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of this machine, or of the smallest control group of this process."""
    total = _kib_values(root / "proc/meminfo").get("MemTotal", _physical_bytes())
    return min([total, *(limit for limit, _ in _control_groups(root))])


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of each control group that holds this process and has a limit."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit_file, use_file, spare_key = _V1 if controllers else _V2
        group = mounted / path.lstrip("/")
        # The limits of all parents apply, too: containers set theirs above the process's group.
        while group.is_relative_to(mounted):
            limit, used = _number(group / limit_file), _number(group / use_file)
            if limit is not None and used is not None:
                stat = dict(each.split() for each in _lines(group / "memory.stat"))
                yield limit, used - int(stat.get(spare_key, 0))
            group = group.parent


def _kib_values(path: Path) -> dict[str, int]:
    """Return the lines `Name:  123 kB` of a kernel file, in bytes."""
    pairs = (line.removesuffix(" kB").split(":") for line in _lines(path) if line.endswith(" kB"))
    return {name: int(number) * 1024 for name, number in pairs}


def _number(path: Path) -> int | None:
    """Return the number in a file; None for the word `max`, or without the file."""
    match _lines(path):
        case [text] if text.isdigit():
            return int(text)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
