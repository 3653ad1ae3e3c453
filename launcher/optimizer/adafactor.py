"""Adafactor, ours: transformers' is several times slower and holds copies of the largest matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget, UsualLr
from launcher.optimizer._blockwise.relative_step import LARGEST_RELATIVE_STEP, relative_step
from launcher.optimizer._groups.fields import Positive

if TYPE_CHECKING:
    import torch


_NO_WARMUP = (
    "is the start of the relative step, which is not taken here; set it to false "
    "(scheduler.warmup_steps warms a schedule up)"
)


class Adafactor(OptimizerOption):
    """Second moments by row and column, clipped updates, a learning rate of its own.

    Two rates are possible: the relative step min(1e-2, 1/√step), or that of the run's schedule.
    `relative_step: null` lets the schedule decide: `scheduler=adafactor` leaves the rate to the
    optimizer, any other sets it.

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
    """Peak learning rate; null for the relative step, or, under a schedule, for the largest of it:
    0.01."""
    eps: tuple[Positive, Annotated[float, Field(ge=0, le=1e6)]]
    """What is added to squared gradients; the least root mean square that scale_parameter takes."""
    clip_threshold: float = Field(gt=0, le=1e9)
    """Limit of the root mean square of an update, before the learning rate."""
    decay_rate: float = Field(ge=-100, lt=0)
    """The second moment keeps 1 - step^decay_rate of itself."""
    beta1: float | None = Field(ge=0, lt=1)
    """How much of the running mean of updates is kept; null has none, and saves four bytes per
    parameter."""
    scale_parameter: bool
    """Multiply the learning rate by each parameter's root mean square."""
    relative_step: bool | None
    """Take the relative step instead of a schedule's rate; null takes it exactly if
    scheduler=adafactor."""
    warmup_init: bool
    """Let the relative step rise by 1e-6 a step until it meets its curve, which takes 10,000
    steps."""

    @property
    @override
    def peak_lr(self) -> float | None:
        if self.lr is None and self.relative_step is None:
            return LARGEST_RELATIVE_STEP
        return self.lr

    @override
    def own_rate(self, step: int) -> float | None:
        """The relative step, before the parameters' scale."""
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
    def void_under_schedule(self) -> Mapping[str, str]:
        return (
            {"warmup_init": f"{_NO_WARMUP}, or choose scheduler=adafactor"}
            if self.warmup_init
            else {}
        )

    @override
    def refuses_shards(self) -> None:
        return None  # What it needs of whole tensors is summed over the shards.

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Our Adafactor; it walks in blocks that fit the device's cache."""
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
