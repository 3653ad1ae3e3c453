"""How much memory a rank may take, how much it has taken, and how it is kept from taking more."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Protocol

import torch
from typing_extensions import override

from launcher.contracts import MicroBatchSearch
from launcher.launch._available import available_bytes, kib_values

_GIB, _MIB = 2**30, 2**20
# Thread stacks and the like are mapped but hardly touched: they are no reason to refuse memory.
_SLACK = 256 * _MIB


class Memory(Protocol):
    """The memory of a rank's device."""

    limit: float
    """What the rank may take, less the margin, in bytes."""

    def impose(self) -> None:
        """Refuse the process more than the limit; to be called before anything is built."""

    def peak(self) -> float:
        """The most that the process has taken so far, in bytes."""


def memory_of(device: str, search: MicroBatchSearch) -> Memory:
    """The memory of a device, limited as a search has it.

    Args:
        device: What torch calls the device.
        search: Gives the limit, or leaves it to what is free now, and the margin.
    """
    if torch.device(device).type == "cuda":
        return CudaMemory(torch.device(device), search)
    return HostMemory(search)


class CudaMemory(Memory):
    """What torch's caching allocator holds of a CUDA device."""

    def __init__(self, device: torch.device, search: MicroBatchSearch) -> None:
        self._device = device
        free, self._total = torch.cuda.mem_get_info(device)
        given = search.memory_limit_gib
        self.limit = (free if given is None else given * _GIB) * (1 - search.memory_margin)

    @override
    def impose(self) -> None:
        share = min(1.0, self.limit / self._total)
        torch.cuda.set_per_process_memory_fraction(share, self._device)

    @override
    def peak(self) -> float:
        # What is reserved, not what is in use: memory lost to fragmentation is taken as well.
        return float(torch.cuda.max_memory_reserved(self._device))


class HostMemory(Memory):
    """The resident memory of this process, where the device is the CPU or shares its memory."""

    def __init__(self, search: MicroBatchSearch) -> None:
        given = search.memory_limit_gib
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        whole = available_bytes() / ranks_here if given is None else given * _GIB
        self.limit = whole * (1 - search.memory_margin)

    @override
    def impose(self) -> None:
        """Bound what may be mapped and written to, so that a machine is not driven into swapping.

        The bound lies a little above the limit; whether that was kept is for `peak` to say.
        """
        status = _status()
        if "VmData" not in status:
            return
        room = max(0.0, self.limit - status["VmRSS"])
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        bound = int(status["VmData"] + room + _SLACK)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))

    @override
    def peak(self) -> float:
        # Not ru_maxrss where it can be helped: across exec it remembers what the launcher took.
        if (high_water := _status().get("VmHWM")) is not None:
            return float(high_water)
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _status() -> dict[str, int]:
    """This process's memory in bytes, by the kernel's names; empty where there is no /proc."""
    return kib_values(Path("/proc/self/status"))
