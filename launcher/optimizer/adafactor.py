"""Adafactor, in blocks that fit the device's cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget, UsualLr
from launcher.optimizer._groups.fields import Positive

if TYPE_CHECKING:
    import torch


# The relative step in the first 10,000 steps, after which 1 / sqrt(step) is smaller.
_LARGEST_RELATIVE_STEP = 1e-2
_NO_WARMUP = (
    "is the start of the relative step, which is not taken here; set it to false "
    "(scheduler.warmup_steps warms a schedule up)"
)


class Adafactor(OptimizerOption):
    """Factored second moments (by row and column), clipped updates, its own learning rate.

    The learning rate is the relative step min(1e-2, 1/√step), or that of the run's schedule.
    With `relative_step: null`, `scheduler=adafactor` selects the relative step, and any other
    scheduler sets the rate.

    Source: Shazeer & Stern 2018, arXiv:1804.04235; where the paper is silent,
        `transformers.optimization.Adafactor`.
    """

    group_options: ClassVar[frozenset[str]] = OptimizerOption.group_options | {
        "eps",
        "clip_threshold",
        "decay_rate",
        "beta1",
        "scale_parameter",
    }
    clips_itself: ClassVar[bool] = True
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {
        "lr": UsualLr(full=(1e-5, 1e-3), adapter=(1e-4, 1e-3))
    }

    kind: Literal["adafactor"]
    lr: float | None = Field(gt=0, le=1e3)
    """Peak learning rate. Null for the relative step; with a schedule, null is 0.01, its
    maximum."""
    eps: tuple[Positive, Annotated[float, Field(ge=0, le=1e6)]]
    """Added to squared gradients; lower bound of the root mean square for scale_parameter."""
    clip_threshold: float = Field(gt=0, le=1e9)
    """Limit of the root mean square of an update, before the learning rate."""
    decay_rate: float = Field(ge=-100, lt=0)
    """The decay of the second moment is 1 - step^decay_rate."""
    beta1: float | None = Field(ge=0, lt=1)
    """Decay of the running mean of updates; null for no running mean, which saves four bytes per
    parameter."""
    scale_parameter: bool
    """Multiply the learning rate by each parameter's root mean square."""
    relative_step: bool | None
    """Use the relative step instead of the schedule's rate; null: only with scheduler=adafactor."""
    warmup_init: bool
    """Warm up the relative step by 1e-6 per step until it reaches 1/√step, after 10,000 steps."""

    @property
    @override
    def peak_lr(self) -> float | None:
        if self.lr is None and self.relative_step is None:
            return _LARGEST_RELATIVE_STEP
        return self.lr

    @override
    def own_lr(self, step: int) -> float | None:
        # Before it is scaled by the size of each parameter: only this rate is one number.
        if self.lr is not None or self.relative_step is False:
            return None
        return relative_step(step + 1, warmup_init=self.warmup_init)

    @model_validator(mode="after")
    def _one_learning_rate(self) -> Self:
        if self.relative_step and self.lr is not None:
            raise ValueError(
                f"relative_step is a learning rate of the optimizer's own, but lr is {self.lr:g}; "
                "set lr to null, or relative_step to false"
            )
        if self.relative_step is False and self.lr is None:
            raise ValueError(
                "lr is null and relative_step false, so that there is no learning rate; set lr "
                "(T5 takes 1e-3), or relative_step to true"
            )
        if self.warmup_init and (self.relative_step is False or self.lr is not None):
            raise ValueError(f"warmup_init {_NO_WARMUP}, or lr to null and relative_step to true")
        return self

    @override
    def ignored_under_schedule(self) -> Mapping[str, str]:
        return (
            {"warmup_init": f"{_NO_WARMUP}, or choose scheduler=adafactor"}
            if self.warmup_init
            else {}
        )

    @override
    def refuses_shards(self) -> None:
        return None  # sums over whole tensors are summed over the shards

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # Not transformers': several times slower, and holds copies of the largest matrix.
        from launcher.optimizer._blockwise.adafactor import AdafactorOptimizer
        from launcher.optimizer._groups.param_groups import param_groups

        return AdafactorOptimizer(
            param_groups(target, self),
            lr=self.lr,
            eps=self.eps,
            clip_threshold=self.clip_threshold,
            decay_rate=self.decay_rate,
            beta1=self.beta1,
            weight_decay=self.weight_decay,
            scale_parameter=self.scale_parameter,
            relative_step=bool(self.relative_step),
            warmup_init=self.warmup_init,
            sharding=target.sharding,
        )


def relative_step(step: int, *, warmup_init: bool) -> float:
    """Return the learning rate at a step, counted from 1, before the parameters' scale."""
    # Shazeer & Stern 2018, §9; the warm-up is that of transformers.
    start = 1e-6 * step if warmup_init else _LARGEST_RELATIVE_STEP
    return min(start, 1.0 / math.sqrt(step))
