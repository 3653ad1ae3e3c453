"""What the 8-bit optimizers are told: those of Adam's kind, of Lion's and of AdEMAMix's."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.optimizer._fields import Beta
from launcher.optimizer._low_bit import BITSANDBYTES_BLOCK, LowBit
from launcher.optimizer._mixed_moments import MixedMoments


class EightBit(LowBit):
    """An optimizer whose moments have 8 bits.

    Source: Dettmers et al. 2021, arXiv:2110.02861.
    """

    bits: ClassVar[int] = 8
    # Where bitsandbytes has kernels; a kind that another library has too says more.
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    min_8bit_size: int = Field(ge=0)
    """Smaller parameters keep 32-bit moments, in elements."""

    @property
    @override
    def block(self) -> int:
        return BITSANDBYTES_BLOCK

    @property
    @override
    def smallest(self) -> int:
        return self.min_8bit_size


class EightBitAdam(EightBit):
    """Adam with moments in 8 bits."""

    group_options: ClassVar[frozenset[str]] = EightBit.group_options | {"betas", "eps"}
    moments: ClassVar[int] = 2
    devices: ClassVar[frozenset[str]] = LowBit.devices

    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their squares."""
    eps: float = Field(ge=0)
    """Added to the root of the second moment."""
    library: Literal["auto", "bitsandbytes", "torchao"]
    """`auto` prefers bitsandbytes on CUDA and torchao elsewhere, and takes what is installed; the
    log says which."""
    block_size: int = Field(ge=32)
    """Elements that share one scale. bitsandbytes knows 256 only."""

    @model_validator(mode="after")
    def _library_has_the_kind(self) -> Self:
        if self.library != "auto" and self.library not in self.classes:
            raise ValueError(f"library: only {', '.join(self.classes)} has {self.kind}; use auto")
        return self

    @property
    @override
    def block(self) -> int:
        return self.block_size

    @property
    @override
    def libraries(self) -> tuple[str, ...]:
        return tuple(self.classes) if self.library == "auto" else (self.library,)

    @override
    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


class EightBitLion(EightBit):
    """Lion with its momentum in 8 bits."""

    group_options: ClassVar[frozenset[str]] = EightBit.group_options | {"betas"}
    moments: ClassVar[int] = 1

    betas: tuple[Beta, Beta]
    """Weight of the momentum in the update, and decay of the momentum."""

    @override
    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas}


class EightBitAdEMAMix(MixedMoments, EightBit):
    """AdEMAMix with its three moments in 8 bits."""

    group_options: ClassVar[frozenset[str]] = MixedMoments.group_options
    moments: ClassVar[int] = 3

    @override
    def arguments(self) -> dict[str, Any]:
        steps = {"t_alpha": self.t_alpha_beta3, "t_beta3": self.t_alpha_beta3}
        return {"betas": self.betas, "eps": self.eps, "alpha": self.alpha, **steps}
