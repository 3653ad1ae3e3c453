"""Float32 whose matrix products round their inputs to ten bits of mantissa on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.precision._options import FullEvalOption

if TYPE_CHECKING:
    from launcher.contracts import Precision


class Tf32(FullEvalOption):
    """Float32 stored and summed, TF32 multiplied, on CUDA from Ampere on."""

    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})

    kind: Literal["tf32"]

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = super().unsupported_on(device_type)
        return {key: f"{reason}; write precision=fp32" for key, reason in found.items()}

    @override
    def build(self, device_type: str) -> Precision:
        from launcher.precision._autocast import Float32
        from launcher.precision._options import require_cuda, set_tf32

        require_cuda(self.kind, device_type, (8, 0), "fp32")
        set_tf32(allowed=True)
        return Float32(device_type, self.full_eval)
