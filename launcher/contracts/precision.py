"""Number formats, live."""

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
    """A factor on the loss that keeps small gradients from vanishing in a narrow format."""

    value: float
    """The factor now: a power of two, so that scaling and unscaling round nothing."""

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""

    def unscale(self, grads: Sequence[Tensor]) -> None:
        """Divide gradients by the factor, in place."""

    def update(self, *, overflowed: bool) -> None:
        """Move the factor after an update, applied or, because a gradient overflowed, skipped.

        Raises:
            NonFinite: The gradients overflow however small the factor is.
        """


class Precision(ABC):
    """Number formats on one kind of device.

    What an engine does with it: `prepare` the module before it is moved, wrapped or sharded; let
    `build_optimizer` build the optimizer; run forward passes in `autocast()`, those of an
    evaluation in `evaluation(module)`; save `state()` with its own as `precision.<key>`.
    """

    loss_scale: LossScale | None = None
    """None where gradients have range enough."""

    @property
    @abstractmethod
    def param_dtype(self) -> torch.dtype:
        """Format of the parameters that the optimizer updates."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""

    def prepare(self, module: nn.Module) -> None:
        """Give the module its formats, in place.

        Buffers keep theirs: rounded positions or running statistics would gain nothing and lose
        much.
        """
        for param in module.parameters():
            if param.is_floating_point():
                param.data = param.data.to(self.param_dtype)

    def evaluation(self, module: nn.Module) -> AbstractContextManager[Any]:
        """The context in which forward passes of an evaluation run, without gradients."""
        del module
        return self.autocast()

    def build_optimizer(
        self, option: OptimizerOption, target: OptimizerTarget
    ) -> torch.optim.Optimizer:
        """The optimizer over the module's parameters, stepping them as the format demands."""
        return option.build(target)

    def state(self) -> Mapping[str, Tensor]:
        """What a resumed run needs to go on bit for bit; tensors on the CPU, by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. A name that is missing or unknown is a KeyError."""
        if state:
            raise KeyError(*state)
