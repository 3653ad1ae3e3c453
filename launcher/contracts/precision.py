"""Interface of number formats and loss scaling at run time."""

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
    """Current factor: a power of two, so that scaling and unscaling are exact."""

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to call `backward` on."""

    def unscale(self, grads: Sequence[Tensor]) -> None:
        """Divide gradients by the factor, in place."""

    def update(self, *, overflowed: bool) -> None:
        """Adapt the factor after an update; an overflow made the engine skip it.

        Raises:
            NonFinite: Gradients overflow at the smallest factor.
        """


class Precision(ABC):
    """Number formats on one kind of device.

    An engine calls `prepare` before the module is moved, wrapped or sharded, builds the optimizer
    with `build_optimizer`, runs forward passes in `autocast()` (of an evaluation in
    `evaluation(module)`), and saves `state()` as `precision.<key>`.
    """

    loss_scale: LossScale | None = None
    """None for formats with the range of float32."""

    @property
    @abstractmethod
    def param_dtype(self) -> torch.dtype:
        """Format of the parameters that the optimizer updates."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes."""

    def prepare(self, module: nn.Module) -> None:
        """Convert the module's parameters, in place; buffers keep their format."""
        # Rounding positions or running statistics costs accuracy and saves almost no memory. Not
        # `module.to(dtype)`, which converts buffers too. `param.data`, because the parameter must
        # stay the same object: tied layers and the optimizer's groups refer to it.
        for param in module.parameters():
            if param.is_floating_point():
                param.data = param.data.to(self.param_dtype)

    def evaluation(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return the context for an evaluation's forward passes."""
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
        """Load what `state` returned.

        Raises:
            KeyError: A name is missing or unknown.
        """
        if state:
            raise KeyError(*state)
