"""No average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from typing_extensions import override

from launcher.contracts import EmaOption, WeightAverage

if TYPE_CHECKING:
    from torch import Tensor


class NoAverage(EmaOption):
    """No average: evaluations and exports use the trained weights."""

    @override
    def build(self, params: Mapping[str, Tensor]) -> WeightAverage | None:
        return None
