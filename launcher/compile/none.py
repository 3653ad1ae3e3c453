"""No compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from launcher.contracts import CompileOption

if TYPE_CHECKING:
    from torch import nn


class Eager(CompileOption):
    """Compute operation by operation, without compilation."""

    @override
    def apply(self, module: nn.Module) -> None:
        pass
