"""Matrix products in float16 by autocast, with a loss scale that keeps gradients in its range."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import override

from launcher.contracts import DType
from launcher.precision._options import FullEvalOption

if TYPE_CHECKING:
    from launcher.contracts import Precision


def _power_of_two(value: float) -> float:
    # Only then are scaling and unscaling exact.
    if math.frexp(value)[0] != 0.5:
        nearest = 2.0 ** round(math.log2(value))
        raise ValueError(
            f"must be a power of two, or scaling would round, but is {value:g}; the nearest is "
            f"{nearest:g}"
        )
    return value


Scale = Annotated[float, Field(gt=0, le=2.0**127), AfterValidator(_power_of_two)]


class Fp16(FullEvalOption):
    """Autocast to float16 over float32 master weights, with dynamic loss scaling.

    An update whose gradients overflow is skipped, and the scale is halved; the schedule continues.
    """

    autocast_dtype: ClassVar[DType | None] = "float16"

    kind: Literal["fp16"]
    init_scale: Scale
    """Factor on the loss at the start; a power of two."""
    min_scale: Scale
    """Gradients that overflow with a smaller factor end the run; a power of two."""
    growth_interval: int = Field(gt=0, le=10**12)
    """Updates without overflow after which the factor is doubled."""

    @model_validator(mode="after")
    def _begins_above_the_floor(self) -> Self:
        if self.init_scale < self.min_scale:
            raise ValueError(
                f"min_scale {self.min_scale:g} must not be above init_scale {self.init_scale:g}"
            )
        return self

    @override
    def build(self, device_type: str) -> Precision:
        from launcher.precision._autocast import DynamicLossScale, ScaledAutocast
        from launcher.precision._options import warn_if_emulated

        warn_if_emulated("fp16", device_type)
        loss_scale = DynamicLossScale(
            init_scale=self.init_scale,
            growth_interval=self.growth_interval,
            min_scale=self.min_scale,
        )
        return ScaledAutocast(device_type, self.full_eval, loss_scale)
