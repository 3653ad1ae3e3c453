"""Prodigy from prodigyopt, the package of the method's authors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.optimizer._extras import require
from launcher.optimizer._fields import Beta

if TYPE_CHECKING:
    import torch


class Prodigy(OptimizerOption):
    """Adam that estimates its own step size from the distance travelled.

    Source: Mishchenko & Defazio 2023, arXiv:2306.06101, algorithm 4.
    """

    # One distance is estimated over all groups: they share one learning rate.
    group_options: ClassVar[frozenset[str]] = frozenset({"weight_decay", "eps"})
    owns_schedule: ClassVar[bool] = True

    kind: Literal["prodigy"]
    lr: float = Field(gt=0)
    """Factor on the estimated step size; leave it 1 and tune `d_coef`."""
    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their squares."""
    beta3: float | None = Field(ge=0, lt=1)
    """Decay of the distance estimate's sums; null for the root of the second beta."""
    eps: float = Field(gt=0)
    """Added to the root of the second moment."""
    decouple: bool
    """Decay the weights themselves, as AdamW, rather than add to the gradient."""
    use_bias_correction: bool
    """Adam's bias correction."""
    safeguard_warmup: bool
    """Keep the learning rate out of the estimate's denominator; for long warm-ups."""
    d0: float = Field(gt=0)
    """First estimate of the distance."""
    d_coef: float = Field(gt=0)
    """Factor on the estimate: the knob to tune."""
    growth_rate: float | None = Field(gt=1)
    """Most that the estimate may grow in a step, as a factor; null for any."""
    slice_p: int = Field(ge=1)
    """Estimate from every so many-th entry of each tensor, to save memory; 1 is exact."""

    @override
    def preflight(self) -> None:
        """See that prodigyopt is installed."""
        require("prodigyopt", extra="prodigy", kind=self.kind)

    @override
    def refuses_shards(self) -> str:
        return "its step size is estimated from sums over all parameters"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Prodigyopt's Prodigy."""
        self.preflight()
        from launcher.optimizer._param_groups import param_groups
        from launcher.optimizer._prodigy import PortableProdigy

        return PortableProdigy(
            param_groups(target, self),
            lr=self.lr,
            betas=self.betas,
            beta3=self.beta3,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decouple=self.decouple,
            use_bias_correction=self.use_bias_correction,
            safeguard_warmup=self.safeguard_warmup,
            d0=self.d0,
            d_coef=self.d_coef,
            growth_rate=float("inf") if self.growth_rate is None else self.growth_rate,
            slice_p=self.slice_p,
        )
