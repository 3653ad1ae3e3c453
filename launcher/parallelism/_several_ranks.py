"""Base class of the options of engines for several ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from typing_extensions import override

from launcher.contracts import ConfigView, Engine, EngineParts, ParallelismOption


class SeveralRanks(ParallelismOption):
    """Engines that on one rank, which has no process group, are the engine of one process."""

    on_one_rank: ClassVar[str]
    """Reason why no field has an effect on one rank."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if config.launch.ranks > 1:
            return found
        fields = type(self).model_fields.keys() - {"kind"}
        return {**found, **dict.fromkeys(sorted(fields), self.on_one_rank)}

    @override
    def build(self, parts: EngineParts) -> Engine:
        if parts.world.size == 1:
            from launcher.parallelism._torch_engine import SingleEngine

            return SingleEngine(parts)
        return self.build_distributed(parts)

    @abstractmethod
    def build_distributed(self, parts: EngineParts) -> Engine:
        """Build the engine of more than one rank."""
