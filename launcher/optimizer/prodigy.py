"""Prodigy from prodigyopt, the package of the method's authors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget, UsualLr
from launcher.optimizer._groups.fields import DecoupledDecay, Moments
from launcher.optimizer._libraries.options import LibraryOption

if TYPE_CHECKING:
    import torch


class Prodigy(Moments, DecoupledDecay, LibraryOption):
    """Adam that estimates its own step size from the distance to the initial weights.

    Source: Mishchenko & Defazio 2023, arXiv:2306.06101, algorithm 4.
    """

    # One distance is estimated over all groups: they share one learning rate.
    group_options: ClassVar[frozenset[str]] = frozenset({"weight_decay", "eps"})
    package: ClassVar[tuple[str, str]] = ("prodigyopt", "prodigyopt")
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {}

    kind: Literal["prodigy"]
    lr: float = Field(gt=0, le=1e3)
    """Factor on the estimated step size; leave it 1 and tune `d_coef`. A schedule multiplies it;
    the authors recommend scheduler=cosine."""
    beta3: float | None = Field(ge=0, lt=1)
    """Decay of the distance estimate's sums; null for the root of the second beta."""
    eps: float = Field(gt=0, le=1)
    use_bias_correction: bool
    """Adam's bias correction."""
    safeguard_warmup: bool
    """Keep the learning rate out of the estimate's denominator; for long warm-ups."""
    d0: float = Field(gt=0, le=1e3)
    """First estimate of the distance."""
    d_coef: float = Field(gt=0, le=1e6)
    """Factor of the estimate: the setting to tune."""
    growth_rate: float | None = Field(gt=1, le=1e9)
    """Upper limit of the growth of the estimate per step, as a factor; null for no limit."""
    slice_p: int = Field(ge=1, le=2**20)
    """Use every slice_p-th entry of each tensor for the estimate, to save memory; 1 is exact."""

    @override
    def refuses_shards(self) -> str:
        return "its step size is estimated from sums over all parameters"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.prodigyopt import PortableProdigy

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
            # YAML has no portable infinity: null means no limit.
            growth_rate=float("inf") if self.growth_rate is None else self.growth_rate,
            slice_p=self.slice_p,
        )
