"""One process on one device."""

from __future__ import annotations

from typing_extensions import override

from launcher.contracts import Engine, EngineParts, Layout, ParallelismOption


class Single(ParallelismOption):
    """One process, one device: CPU, CUDA or MPS."""

    @override
    def layout(self, ranks: int) -> Layout:
        if ranks != 1:
            raise ValueError(
                f"single is one process, but launch starts {ranks} ranks; choose parallelism=ddp"
            )
        return Layout()

    @override
    def build(self, parts: EngineParts) -> Engine:
        from launcher.parallelism._torch_engine import SingleEngine

        return SingleEngine(parts)
