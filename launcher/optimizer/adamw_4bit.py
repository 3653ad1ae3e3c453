"""4-bit AdamW from torchao, the only maintained library that has it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.optimizer._groups.fields import Moments
from launcher.optimizer._low_bit.options import LowBit


class AdamW4bit(LowBit, Moments):
    """AdamW with moments in 4 bits: an eighth of the state.

    Source: Li et al. 2023, arXiv:2309.01507, in blocks also for the second moment.
    """

    classes: ClassVar[Mapping[str, str]] = {"torchao": "AdamW4bit"}
    moments: ClassVar[int] = 2
    bits: ClassVar[int] = 4
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    kind: Literal["adamw_4bit"]
    block_size: int = Field(ge=32, multiple_of=2, le=2**20)
    """Elements that share one scale; parameters whose size is no multiple of it keep 32-bit
    moments."""
    min_4bit_size: int = Field(ge=0, le=2**40)
    """Smaller parameters keep 32-bit moments, in elements."""

    @property
    @override
    def block(self) -> int:
        return self.block_size

    @property
    @override
    def smallest(self) -> int:
        return self.min_4bit_size

    @override
    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}
