"""The lowest learning rate of a schedule, given as a rate or as a part of the peak."""

from typing import Self

from pydantic import Field, model_validator

from launcher.contracts import Misfit
from launcher.scheduler._warmup import WarmedUp


class Floored(WarmedUp):
    """A schedule that comes down to a floor: `min_lr`, or `min_lr_ratio` of the peak, or 0."""

    min_lr: float | None = Field(ge=0)
    """Lowest learning rate; null where min_lr_ratio says it. Both null: 0. A parameter group with a
    learning rate of its own has its floor in proportion."""
    min_lr_ratio: float | None = Field(ge=0, le=1)
    """Lowest learning rate over the peak; null where min_lr says it."""

    @model_validator(mode="after")
    def _one_floor(self) -> Self:
        one_of("min_lr", self.min_lr, "min_lr_ratio", self.min_lr_ratio)
        return self

    def floor(self, peak_lr: float) -> float:
        """The lowest learning rate over the peak.

        Raises:
            Misfit: The floor is above the peak.
        """
        return over_peak("min_lr", self.min_lr, self.min_lr_ratio, peak_lr)


def one_of(name: str, rate: float | None, ratio_name: str, ratio: float | None) -> None:
    """Refuse a floor that is given twice.

    Raises:
        ValueError: Both are given.
    """
    if rate is not None and ratio is not None:
        raise ValueError(
            f"{name} {rate:g} and {ratio_name} {ratio:g} both say the lowest learning rate; "
            "set one of them to null"
        )


def over_peak(name: str, rate: float | None, ratio: float | None, peak_lr: float) -> float:
    """The floor over the peak, from whichever of the two is given; 0 when neither is.

    Raises:
        Misfit: The floor is above the peak.
    """
    if not rate:
        return ratio or 0.0
    if rate > peak_lr:
        raise Misfit(name, f"must not be above the peak learning rate {peak_lr:g}, but is {rate:g}")
    return rate / peak_lr
