"""Schedule-free AdamW from schedulefree, the package of the method's authors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption
from launcher.optimizer._extras import require
from launcher.optimizer._fields import Beta

if TYPE_CHECKING:
    import torch
    from torch import nn


class ScheduleFreeAdamW(OptimizerOption):
    """AdamW whose averaged weights make a decaying schedule needless.

    The weights that are trained and the averaged ones that are evaluated and exported differ: the
    built optimizer switches between them with `train()` and `eval()`, and starts in training.

    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """

    group_options: ClassVar[frozenset[str]] = OptimizerOption.group_options | {"betas", "eps"}
    owns_schedule: ClassVar[bool] = True

    kind: Literal["schedule_free_adamw"]
    lr: float = Field(gt=0)
    """Learning rate after warm-up; it does not decay."""
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Beta]
    """Interpolation between averaged and fast weights, and decay of the mean of squares."""
    eps: float = Field(ge=0)
    """Added to the root of the second moment."""
    warmup_steps: int = Field(ge=0)
    """Optimizer steps of linear warm-up, by the optimizer itself."""
    r: float = Field(ge=0)
    """Power of the step in the average's weights; 0 weighs all steps alike."""
    weight_lr_power: float = Field(ge=0)
    """Power of the learning rate in the average's weights."""

    @override
    def preflight(self) -> None:
        """See that schedulefree is installed."""
        require("schedulefree", extra="schedule-free", kind=self.kind)

    @override
    def build(self, module: nn.Module, device_type: str) -> torch.optim.Optimizer:
        """Schedulefree's AdamW, in training mode."""
        self.preflight()
        from launcher.optimizer._param_groups import param_groups
        from launcher.optimizer._schedule_free import PortableScheduleFreeAdamW

        return PortableScheduleFreeAdamW(
            param_groups(module, self),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            r=self.r,
            weight_lr_power=self.weight_lr_power,
        )
