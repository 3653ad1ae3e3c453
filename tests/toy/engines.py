"""Engines with a defect: what `trainctl verify` must find in a package that it does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor
from typing_extensions import override

from launcher.contracts import Engine, EngineParts, Window
from launcher.parallelism.ddp import DDP


class SpoiledDDP(DDP):
    """Data parallelism with a defect."""

    kind: Literal["toy_ddp"]  # type: ignore[assignment] # as for every derived kind
    defect: Literal["averaged", "crash"]
    """The defect."""

    @override
    def build(self, parts: EngineParts) -> Engine:
        from launcher.parallelism import DDPEngine

        defect, world = self.defect, parts.world

        class Spoiled(DDPEngine):
            @override
            def forward_backward(self, window: Window) -> Tensor:
                if defect == "crash" and world.rank == 1:
                    raise ZeroDivisionError("a toy crash")
                # Divided by the number of ranks once too often.
                targets = window.num_targets * world.size
                return super().forward_backward(replace(window, num_targets=targets))

        return Spoiled(parts, self)
