"""Progress of each rank, in memory that the ranks share with the launcher."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

from launcher.launch._environment import HEARTBEAT_FD

# The memory starts with zeros: a rank that has not reported is in the first phase.
PHASES = ("build", "step", "evaluate", "save", "end")
# A cache line for each rank: ranks that write to one line would slow each other.
_BYTES = 64


@dataclass(frozen=True, slots=True)
class Beat:
    """Last entry of a rank: number of its entries, optimizer steps done, phase."""

    count: int
    step: int
    phase: str


class Heartbeat:
    """Writes a rank's entry; to private memory if no launcher reads it."""

    def __init__(self, rank: int) -> None:
        descriptor = os.environ.get(HEARTBEAT_FD)
        if descriptor is None:
            self._words = memoryview(bytearray(_BYTES)).cast("q")
            return
        shared = mmap.mmap(int(descriptor), 0)
        os.close(int(descriptor))
        self._words = memoryview(shared)[rank * _BYTES : (rank + 1) * _BYTES].cast("q")

    def __call__(self, phase: str, step: int) -> None:
        """Report that a phase begins, and the number of steps done."""
        # After every step and evaluated micro-batch: three stores and no system call. The count
        # last: a new count must come with its step and phase.
        words = self._words
        words[1], words[2] = step, PHASES.index(phase)
        words[0] += 1


class Heartbeats:
    """Reads all ranks' entries, in the launcher."""

    def __init__(self, ranks: int) -> None:
        # Without a name in any file system: nothing is left behind, whoever dies first.
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("trainctl-heartbeat")
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, ranks * _BYTES)
        self._shared = mmap.mmap(self.descriptor, 0)

    def read(self, rank: int) -> Beat:
        with memoryview(self._shared) as view, view.cast("q") as words:
            start = rank * _BYTES // 8
            count, step, phase = words[start : start + 3].tolist()
        return Beat(count, step, PHASES[phase])

    def furthest(self) -> int:
        """Return the most steps that a rank has done."""
        ranks = len(self._shared) // _BYTES
        return max(self.read(rank).step for rank in range(ranks))

    def close(self) -> None:
        self._shared.close()
        os.close(self.descriptor)
