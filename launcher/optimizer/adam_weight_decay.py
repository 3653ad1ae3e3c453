"""Transformers' AdamWeightDecay for TensorFlow, in torch operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import OptimizerTarget
from launcher.optimizer._groups.fields import Epsilon, Moments

if TYPE_CHECKING:
    import torch


class AdamWeightDecay(Moments):
    """Adam with decoupled weight decay and clipping, as in TensorFlow.

    Decay comes before the update; epsilon is added to the uncorrected root of the second moment.

    Source: transformers 4.37, `optimization_tf.py`, over Keras' legacy Adam; Kingma & Ba 2014,
        arXiv:1412.6980, end of section 2.
    """

    kind: Literal["adam_weight_decay"]
    eps: Epsilon
    """Added to the root of the second moment, before bias correction."""
    amsgrad: bool
    """Divide by the largest second moment so far."""
    clip_value: float | None = Field(gt=0, le=1e9)
    """Limit of the absolute value of each gradient element; null for none."""
    clip_norm: float | None = Field(gt=0, le=1e9)
    """Limit of the 2-norm of each parameter's gradient; null for none."""
    global_clip_norm: float | None = Field(gt=0, le=1e9)
    """Limit of the 2-norm over all gradients; null for none."""

    @model_validator(mode="after")
    def _one_norm(self) -> Self:
        if self.clip_norm is not None and self.global_clip_norm is not None:
            raise ValueError("clip_norm and global_clip_norm: set only one")
        return self

    @override
    def refuses_shards(self) -> str | None:
        if self.clip_norm is None and self.global_clip_norm is None:
            return None
        # The norms are those of Keras: not of what the engine has clipped already.
        return "clip_norm and global_clip_norm are norms over whole tensors"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # `groups.decay` replaces `include_in_weight_decay`, `groups.no_decay` replaces
        # `exclude_from_weight_decay`; the former wins, as in Transformers. `create_optimizer`
        # excluded norms and biases by name; `groups.no_decay_types` does so by type.
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._torch.implementation import choose
        from launcher.optimizer._torch.uncorrected_adam import TensorFlowAdamW

        groups = param_groups(target, self)
        return TensorFlowAdamW(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            amsgrad=self.amsgrad,
            clip_value=self.clip_value,
            clip_norm=self.clip_norm,
            global_clip_norm=self.global_clip_norm,
            kernel_flags=choose("auto", groups, target.device_type, kind=self.kind),
        )
