"""Matrix products in bfloat16 by autocast; the optimizer keeps its float32 parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import DType
from launcher.precision._options import FullEvalOption

if TYPE_CHECKING:
    from launcher.contracts import Precision


class Bf16(FullEvalOption):
    """Autocast to bfloat16 over float32 master weights; its range is float32's: no loss scaling."""

    autocast_dtype: ClassVar[DType | None] = "bfloat16"

    kind: Literal["bf16"]

    @override
    def build(self, device_type: str) -> Precision:
        import torch

        from launcher.precision._autocast import Autocast
        from launcher.precision._options import warn_if_emulated

        warn_if_emulated("bf16", device_type)
        return Autocast(device_type, self.full_eval, torch.bfloat16)
