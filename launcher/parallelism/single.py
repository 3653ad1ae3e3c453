"""One process on one device."""

from __future__ import annotations

from typing_extensions import override

from launcher.contracts import Engine, EngineParts, ParallelismOption


class Single(ParallelismOption):
    """One process, one device: CPU, CUDA or MPS."""

    @override
    def build(self, parts: EngineParts) -> Engine:
        from launcher.parallelism._single_engine import SingleEngine

        return SingleEngine(parts)
