"""Adam and AdamW from torch.optim: the reference, with a fused kernel for each device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator
from typing_extensions import override

from launcher.optimizer._groups.fields import DecoupledDecay, Moments
from launcher.optimizer._torch.implementation import FusedOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import ConfigView, OptimizerTarget


class AdamW(Moments, DecoupledDecay, FusedOption):
    """Adam with decoupled weight decay.

    Source: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2; Kingma & Ba 2014,
        arXiv:1412.6980, algorithm 1, with `decouple: false`.
    """

    elementwise: ClassVar[bool] = True

    kind: Literal["adamw"]
    amsgrad: bool
    """Divide by the largest second moment so far."""
    bias_correction: bool
    """Correct the moments for their initial zeros. Without it, as for BERT, the first updates are
    small."""
    capturable: bool
    """Keep step counts on the device, so that CUDA graphs and torch.compile can capture the
    step."""

    @model_validator(mode="after")
    def _uncorrected_is_not_captured(self) -> Self:
        if not self.bias_correction and self.capturable:
            raise ValueError("capturable: must be false without bias_correction, but is true")
        return self

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if self.bias_correction:
            return found
        return {**found, "capturable": "it must be false without bias_correction"}

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = super().unsupported_on(device_type)
        if not self.capturable or device_type != "cpu":
            return found
        return {**found, "capturable": "nothing captures steps on the CPU; set it false"}

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        import torch

        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._torch.uncorrected_adam import UncorrectedAdam

        groups = param_groups(target, self)
        flags = self.kernel_flags(groups, target.device_type)
        # torch always corrects.
        if not self.bias_correction:
            return UncorrectedAdam(
                groups,
                lr=self.lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                decoupled=self.decouple,
                amsgrad=self.amsgrad,
                kernel_flags=flags,
            )
        return (torch.optim.AdamW if self.decouple else torch.optim.Adam)(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            amsgrad=self.amsgrad,
            capturable=self.capturable,
            **flags,
        )
