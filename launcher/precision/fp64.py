"""Everything in 64 bits: to tell a wrong sum from rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import DType
from launcher.precision._options import FullEvalOption

if TYPE_CHECKING:
    from launcher.contracts import Precision


class Fp64(FullEvalOption):
    """Parameters and reductions in float64; slow, for `trainctl verify`.

    Modules that convert to float32 by themselves, such as RMS norms of transformers, still do.
    """

    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    master_dtype: ClassVar[DType | Literal["float64"]] = "float64"

    kind: Literal["fp64"]

    @override
    def build(self, device_type: str) -> Precision:
        from launcher.precision._autocast import Float64

        return Float64(device_type, self.full_eval)
