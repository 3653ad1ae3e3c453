"""Bfloat16 throughout, weights included, with updates that survive rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import DType, PrecisionOption

if TYPE_CHECKING:
    from launcher.contracts import Precision

_BYTES = 2


class Bf16Pure(PrecisionOption):
    """Weights, gradients and activations in bfloat16; any optimizer steps them in float32.

    A weight in bfloat16 has eight significant bits: without `rounding` most updates would be lost.
    Gradients are accumulated in bfloat16 as well: prefer few micro-batches.
    """

    master_dtype: ClassVar[DType | Literal["float64"]] = "bfloat16"

    kind: Literal["bf16_pure"]
    rounding: Literal["kahan", "stochastic"]
    """`kahan` stores the rounding remainder of each weight, two bytes, and adds it at the next
    step: no update is lost, as with float32 master weights. `stochastic` stores nothing and rounds
    up or down at random, so that updates are right on average."""
    chunk_mib: int = Field(gt=0, le=2**20)
    """Float32 copies of weights and gradients that exist at once during a step, in MiB. Optimizers
    that look at all parameters together take them all at once."""

    @override
    def state_bytes(self, elements: int) -> Mapping[str, int]:
        if self.rounding != "kahan":
            return {}
        return {"rounding remainders (Kahan)": elements * _BYTES}

    @override
    def build(self, device_type: str) -> Precision:
        from launcher.precision._options import warn_if_emulated
        from launcher.precision._pure import PureBf16
        from launcher.precision._rounding import Compensated, Stochastic

        warn_if_emulated("bf16", device_type)
        rounding = Compensated() if self.rounding == "kahan" else Stochastic()
        return PureBf16(rounding, chunk_bytes=self.chunk_mib * 2**20)
