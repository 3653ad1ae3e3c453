"""Everything in 32 bits: the reference that the other formats are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.contracts import PrecisionOption

if TYPE_CHECKING:
    from launcher.contracts import Precision


class Fp32(PrecisionOption):
    """Parameters, computation and reductions in float32."""

    kind: Literal["fp32"]

    @override
    def build(self, device_type: str) -> Precision:
        from launcher.precision._autocast import Whole

        del device_type
        return Whole()
