"""Keep all activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from launcher.contracts import ActivationOption

if TYPE_CHECKING:
    from torch import nn


class KeepAll(ActivationOption):
    """Keep all activations on the device: the fastest, and the most memory."""

    @override
    def apply(self, module: nn.Module) -> None:
        pass
