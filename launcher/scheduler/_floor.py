"""The lowest learning rate of a schedule, given as a rate or as a part of the peak."""

from typing import Self

from pydantic import Field, model_validator

from launcher.scheduler._warmup import WarmedUp


class Floored(WarmedUp):
    """A schedule that comes down to a floor: `min_lr`, or `min_lr_ratio` of the peak, or 0."""

    min_lr: float | None = Field(ge=0)
    """Lowest learning rate; null when min_lr_ratio says it. Both null: 0. Groups with their own learning
    rate have the floor in proportion.
    """
    min_lr_ratio: float | None = Field(ge=0, le=1)
    """Lowest learning rate over the peak; null when min_lr says it."""

    @model_validator(mode="after")
    def _one_floor(self) -> Self:
        if self.min_lr is not None and self.min_lr_ratio is not None:
            raise ValueError(
                f"min_lr {self.min_lr:g} and min_lr_ratio {self.min_lr_ratio:g} both say the lowest "
                "learning rate; set one of them to null"
            )
        return self

    def floor(self, peak_lr: float) -> float:
        """The lowest learning rate over the peak.

        Raises:
            ValueError: The floor is above the peak.
        """
        if self.min_lr is None:
            return self.min_lr_ratio or 0.0
        if self.min_lr > peak_lr:
            raise ValueError(
                f"min_lr must not be above the peak learning rate {peak_lr:g}, but is {self.min_lr:g}"
            )
        return self.min_lr / peak_lr
