"""What Adam and AdamW share: torch's implementation, and where weight decay enters."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import OptimizerOption
from launcher.optimizer._fields import Beta

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchAdam(OptimizerOption):
    """Adam in torch's implementation, or without bias correction in ours."""

    group_options: ClassVar[frozenset[str]] = OptimizerOption.group_options | {"betas", "eps"}

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
    implementation: Literal["auto", "fused", "foreach", "loop"]
    """`auto` takes what the device has, fused first, and says so in the log."""
    capturable: bool
    """Keep step counts on the device, so that CUDA graphs and torch.compile can capture the
    step."""

    @property
    @abstractmethod
    def decoupled(self) -> bool:
        """Decay the weights themselves rather than add to the gradient."""

    @model_validator(mode="after")
    def _uncorrected_is_plain(self) -> Self:
        if not self.bias_correction and (self.amsgrad or self.capturable):
            raise ValueError("bias_correction: false goes with neither amsgrad nor capturable")
        if not self.bias_correction and self.implementation in {"fused", "loop"}:
            raise ValueError("bias_correction: false has a foreach implementation only; use auto")
        return self

    @override
    def build(self, module: nn.Module, device_type: str) -> torch.optim.Optimizer:
        """Torch's Adam or AdamW; ours where bias correction is off."""
        import torch

        from launcher.errors import ConfigError, Problem
        from launcher.optimizer._implementation import choose
        from launcher.optimizer._param_groups import param_groups
        from launcher.optimizer._uncorrected_adam import UncorrectedAdamW

        groups = param_groups(module, self)
        if not self.bias_correction:
            return UncorrectedAdamW(
                groups,
                lr=self.lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                decoupled=self.decoupled,
            )
        if self.capturable and device_type == "cpu":
            message = "nothing captures steps on the CPU; set it false"
            raise ConfigError([Problem("optimizer.capturable", message)])
        return (torch.optim.AdamW if self.decoupled else torch.optim.Adam)(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            amsgrad=self.amsgrad,
            capturable=self.capturable,
            **choose(self.implementation, groups, device_type, kind=self.kind),
        )
