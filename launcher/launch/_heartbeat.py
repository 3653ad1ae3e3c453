"""Progress of each rank, in memory that the ranks and their launcher share.

A rank counts up after each optimizer step, evaluated micro-batch and save: three stores, no system
call. The launcher compares counts by its own clock.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

from launcher.launch._environment import HEARTBEAT_FD

# Phases of a rank; one that has not reported yet is in the first.
PHASES = ("build", "step", "evaluate", "save", "end")
_BYTES = 64  # a cache line of its own for each rank


@dataclass(frozen=True, slots=True)
class Beat:
    """Last entry of a rank.

    Attributes:
        count: Number of times it wrote.
        step: Optimizer steps done.
        phase: One of `PHASES`.
    """

    count: int
    step: int
    phase: str


class Heartbeat:
    """One rank's part of the shared memory; private memory if no launcher reads it."""

    def __init__(self, rank: int) -> None:
        descriptor = os.environ.get(HEARTBEAT_FD)
        if descriptor is None:
            self._words = memoryview(bytearray(_BYTES)).cast("q")
            return
        shared = mmap.mmap(int(descriptor), 0)
        os.close(int(descriptor))
        self._words = memoryview(shared)[rank * _BYTES : (rank + 1) * _BYTES].cast("q")

    def __call__(self, phase: str, step: int) -> None:
        """Report progress.

        Args:
            phase: Phase that begins: one of `PHASES`.
            step: Optimizer steps done.
        """
        words = self._words
        words[1], words[2] = step, PHASES.index(phase)
        words[0] += 1


class Heartbeats:
    """The launcher's view of all ranks' parts of the shared memory."""

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
        """Return what a rank wrote last."""
        with memoryview(self._shared) as view, view.cast("q") as words:
            start = rank * _BYTES // 8
            count, step, phase = words[start : start + 3].tolist()
        return Beat(count, step, PHASES[phase])

    def close(self) -> None:
        """Unmap the memory."""
        self._shared.close()
        os.close(self.descriptor)
