"""What AdEMAMix is told, wherever its moments are kept."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from launcher.contracts import OptimizerOption
from launcher.optimizer._fields import Beta

_Between = Annotated[float, Field(gt=0, lt=1)]


class MixedMoments(OptimizerOption):
    """AdamW whose update adds a slow running mean of gradients to the fast one."""

    group_options: ClassVar[frozenset[str]] = OptimizerOption.group_options | {
        "betas",
        "eps",
        "alpha",
    }

    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[_Between, Beta, _Between]
    """Decay of the fast running mean of gradients, of that of their squares, and of the slow
    one."""
    eps: float = Field(ge=0)
    """Added to the root of the second moment."""
    alpha: float = Field(ge=0)
    """Weight of the slow mean in the update; that of the fast one is 1."""
    t_alpha_beta3: int | None = Field(gt=0)
    """Optimizer steps in which alpha grows from 0 and the third beta from the first; the paper
    takes all of the run. null has both from the start, which early steps seldom bear."""
