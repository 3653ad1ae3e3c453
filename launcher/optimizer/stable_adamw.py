"""StableAdamW, around torch's fused AdamW where the device has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import ConfigView, OptimizerTarget
from launcher.optimizer._groups.fields import FLOAT32_WEIGHTS, Moments

if TYPE_CHECKING:
    import torch


class StableAdamW(Moments):
    """AdamW with Adafactor's update clipping.

    Source: Wortsman et al. 2023, arXiv:2304.13013, algorithm 2; max_lr, decouple_lr and Kahan
        summation as in torch-optimi.
    """

    clips_itself: ClassVar[bool] = True

    kind: Literal["stable_adamw"]
    eps: float = Field(gt=0, le=1)
    decouple_lr: bool
    """Multiply the decay by lr/max_lr instead of lr; weight_decay is then smaller, 1e-5 rather than
    1e-2."""
    max_lr: float | None = Field(gt=0, le=1e3)
    """Largest learning rate of the run, for decouple_lr; null for lr."""
    kahan: bool
    """Carry the rounding errors of weights below float32, for two bytes more per parameter."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = {**super().not_applicable(config), "kahan": FLOAT32_WEIGHTS}
        return found if self.decouple_lr else {**found, "max_lr": "decouple_lr is false"}

    @model_validator(mode="after")
    def _max_lr_has_use(self) -> Self:
        if self.max_lr is not None and not self.decouple_lr:
            raise ValueError(
                "max_lr is for decouple_lr only; set it to null, or decouple_lr to true"
            )
        if self.max_lr is not None and self.max_lr < self.lr:
            raise ValueError(
                f"max_lr {self.max_lr:g} is below lr {self.lr:g}; raise it, or set it to null"
            )
        return self

    @override
    def refuses_shards(self) -> None:
        return None  # sums over whole tensors are summed over the shards

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # Not torch-optimi's: slower, and it overwrites the gradients.
        from launcher.optimizer._blockwise.stable_adamw import StableAdamWOptimizer
        from launcher.optimizer._groups.param_groups import param_groups

        groups = param_groups(target, self)
        for group in groups:
            # Every group's own peak: what scales its learning rate must not scale its decay.
            group["max_lr"] = None if self.max_lr is None else self.max_lr * group["lr_scale"]
        return StableAdamWOptimizer(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decouple_lr=self.decouple_lr,
            max_lr=self.max_lr,
            kahan=self.kahan,
            sharding=target.sharding,
        )
