"""What the schedule-free optimizers share: the average of the weights, and where it comes from."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption
from launcher.optimizer._extras import require

Interpolation = Annotated[float, Field(gt=0, lt=1)]
"""Where gradients are taken between the fast weights (0) and their average (1)."""


class ScheduleFree(OptimizerOption):
    """An optimizer whose averaged weights make a decaying schedule needless.

    The weights that are trained and the averaged ones that are evaluated and exported differ: the
    built optimizer switches between them with `train()` and `eval()`, and starts in training.
    """

    owns_schedule: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    lr: float = Field(gt=0)
    """Learning rate after warm-up; it does not decay."""
    r: float = Field(ge=0)
    """Power of the step in the average's weights; 0 weighs all steps alike."""
    weight_lr_power: float = Field(ge=0)
    """Power of the learning rate in the average's weights."""

    @override
    def preflight(self) -> None:
        """See that schedulefree is installed."""
        require("schedulefree", extra="schedule-free", kind=self.kind)
