"""Everything in 32 bits: the reference that the other formats are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.precision._options import FullEvalOption

if TYPE_CHECKING:
    from launcher.contracts import Precision


class Fp32(FullEvalOption):
    """Parameters, computation and reductions in float32, with no shortcut on any device."""

    kind: Literal["fp32"]

    @override
    def build(self, device_type: str) -> Precision:
        from launcher.precision._autocast import Float32
        from launcher.precision._options import set_tf32

        set_tf32(allowed=False)
        return Float32(device_type, self.full_eval)
