"""What Adam and AdamW share: torch's implementation, and where weight decay enters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.optimizer._fields import Beta
from launcher.optimizer._implementation import InTorch

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class TorchAdam(InTorch):
    """Adam in torch's implementation, with or without bias correction."""

    group_options: ClassVar[frozenset[str]] = InTorch.group_options | {"betas", "eps"}

    elementwise: ClassVar[bool] = True

    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their squares."""
    eps: float = Field(ge=0)
    """Added to the root of the second moment."""
    amsgrad: bool
    """Divide by the largest second moment so far."""
    bias_correction: bool
    """Undo the pull of the moments' zero start; off, as BERT was trained, first updates are
    small."""
    capturable: bool
    """Keep step counts on the device, so that CUDA graphs and torch.compile can capture the
    step."""

    @property
    @abstractmethod
    def decoupled(self) -> bool:
        """Decay the weights themselves rather than add to the gradient."""

    @model_validator(mode="after")
    def _uncorrected_is_not_captured(self) -> Self:
        if not self.bias_correction and self.capturable:
            raise ValueError("bias_correction: false does not go with capturable")
        return self

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = super().unsupported_on(device_type)
        if not self.capturable or device_type != "cpu":
            return found
        return {**found, "capturable": "nothing captures steps on the CPU; set it false"}

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Torch's Adam or AdamW; ours over its kernels where bias correction is off."""
        import torch

        from launcher.optimizer._param_groups import param_groups
        from launcher.optimizer._uncorrected_adam import UncorrectedAdam

        groups = param_groups(target, self)
        walk = self.walk(groups, target.device_type)
        if not self.bias_correction:
            return UncorrectedAdam(
                groups,
                lr=self.lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                decoupled=self.decoupled,
                amsgrad=self.amsgrad,
                walk=walk,
            )
        return (torch.optim.AdamW if self.decoupled else torch.optim.Adam)(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            amsgrad=self.amsgrad,
            capturable=self.capturable,
            **walk,
        )
