"""Contract of a number format at run time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from launcher.contracts.optimizer import OptimizerOption, OptimizerTarget


class LossScale(Protocol):
    """A factor on the loss that keeps small gradients from underflow."""

    value: float
    """The factor now: a power of two, so that scaling and unscaling round nothing."""

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to call `backward` on."""

    def unscale(self, grads: Sequence[Tensor]) -> None:
        """Divide gradients by the factor, in place."""

    def update(self, *, overflowed: bool) -> None:
        """Adapt the factor after an update, which an overflow made the engine skip.

        Raises:
            NonFinite: Gradients overflow at the smallest factor.
        """


class Precision(ABC):
    """Number formats on one kind of device.

    An engine calls `prepare` before the module is moved, wrapped or sharded, builds the optimizer
    with `build_optimizer`, runs forward passes in `autocast()`, those of an evaluation in
    `evaluation(module)`, and saves `state()` with its own as `precision.<key>`.
    """

    loss_scale: LossScale | None = None
    """None for formats with the range of float32."""

    @property
    @abstractmethod
    def param_dtype(self) -> torch.dtype:
        """Format of the parameters that the optimizer updates."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes."""

    def prepare(self, module: nn.Module) -> None:
        """Convert the module's parameters, in place.

        Buffers keep their format: rounding positions or running statistics costs accuracy and
        saves almost no memory.
        """
        for param in module.parameters():
            if param.is_floating_point():
                param.data = param.data.to(self.param_dtype)

    def evaluation(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return the context of an evaluation's forward passes, without gradients."""
        del module
        return self.autocast()

    def build_optimizer(
        self, option: OptimizerOption, target: OptimizerTarget
    ) -> torch.optim.Optimizer:
        """Build the optimizer over the module's parameters, adapted to their format."""
        return option.build(target)

    def state(self) -> Mapping[str, Tensor]:
        """Return the state for an exact resume; tensors on the CPU, by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; a missing or unknown name is a KeyError."""
        if state:
            raise KeyError(*state)
