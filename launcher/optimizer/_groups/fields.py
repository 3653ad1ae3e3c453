"""Fields that several optimizers share, each documented once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ConfigView, OptimizerOption, Pattern, UsualLr

# Reason why carrying rounding errors has no effect in a run.
FLOAT32_WEIGHTS = "optimizers step float32 weights under every precision"
# Share of a running mean that is kept each step.
Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
Epsilon = Annotated[float, Field(ge=0, le=1)]

ADAM_LR = UsualLr(full=(5e-6, 5e-5), adapter=(1e-4, 5e-4))
# The update has the size of the sign: about 3 to 10 times Adam's.
LION_LR = UsualLr(full=(1e-6, 1e-5), adapter=(2e-5, 1e-4))
# Updates without momentum, or in another basis, are smaller.
RMS_LR = UsualLr(full=(1e-5, 1e-4), adapter=(1e-4, 1e-3))
SGD_LR = UsualLr(full=(1e-3, 1e-2), adapter=(1e-2, 1e-1))


class LearningRate(OptimizerOption):
    """An optimizer that always has a learning rate."""

    # The largest useful rate is that of schedule-free SGD, about 10: more is a typing error.
    lr: float = Field(gt=0, le=1e3)
    """Peak learning rate; the schedule scales it."""


class SecondMoment(LearningRate):
    """An optimizer that divides by the root of a running mean of squared gradients."""

    group_options: ClassVar[frozenset[str]] = LearningRate.group_options | {"betas", "eps"}
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": ADAM_LR}

    eps: Epsilon
    """Added to the root of the second moment."""


class Moments(SecondMoment):
    """An optimizer with Adam's two running means."""

    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their squares."""


class MixedMoments(SecondMoment):
    """AdEMAMix, with its moments in any format."""

    group_options: ClassVar[frozenset[str]] = SecondMoment.group_options | {"alpha"}

    betas: tuple[OpenUnit, Beta, OpenUnit]
    """Decay of the fast running mean of gradients, of that of their squares, and of the slow
    one."""
    alpha: float = Field(ge=0, le=1e3)
    """Weight of the slow mean in the update; that of the fast one is 1."""
    t_alpha_beta3: int | None = Field(gt=0, le=10**12)
    """Optimizer steps in which alpha grows from 0 and the third beta from the first; the paper
    uses the length of the run. null has both from the start, which often diverges."""


class DecoupledDecay(OptimizerOption):
    """An optimizer with a choice of weight decay."""

    decouple: bool
    """Decay the weights themselves, as AdamW, rather than add the decay to the gradient."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        return {**found, "decouple": "weight_decay is 0"} if self.never_decays else found


class KahanSum(OptimizerOption):
    """An optimizer that can carry the rounding errors of its weights."""

    kahan_sum: bool | None
    """Carry the rounding errors of the weights; null does so for 16-bit weights."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        return {**super().not_applicable(config), "kahan_sum": FLOAT32_WEIGHTS}


class Matrices(OptimizerOption):
    """An optimizer that treats hidden matrices differently: see `hidden_matrices`."""

    matrices: tuple[Pattern, ...]
    """Patterns of two-dimensional parameters outside the blocks that count as hidden matrices."""
    not_matrices: tuple[Pattern, ...]
    """Patterns of parameters that do not count as hidden matrices."""
