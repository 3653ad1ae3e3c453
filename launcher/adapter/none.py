"""No adapter: the network's own weights are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.contracts import AdapterOption

if TYPE_CHECKING:
    from torch import nn

    from launcher.contracts import Adapted, ExportTarget, Head, OptimizerOption


class NoAdapter(AdapterOption):
    """No adapter: the network's own weights are trained."""

    kind: Literal["none"]

    @property
    @override
    def is_active(self) -> bool:
        return False

    @override
    def adapt(self, module: nn.Module, head: Head, seed: int) -> Adapted | None:
        return None

    @override
    def adjusted(self, optimizer: OptimizerOption) -> OptimizerOption:
        return optimizer

    @override
    def write(self, module: nn.Module, target: ExportTarget) -> None:
        target.write(module, target.folder)
