"""The seam between the loop and everything distributed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.contracts.data import MicroBatch, Window
    from launcher.contracts.optimizer import OptimizerOption
    from launcher.contracts.options import PrecisionOption


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the ranks.

    Attributes:
        rank: From 0 to size - 1.
        size: Number of ranks.
        local_rank: Rank on this machine.
        device: What torch calls the device: `cpu`, `cuda:0`, `mps`.
    """

    rank: int
    size: int
    local_rank: int
    device: str


@dataclass(frozen=True, slots=True)
class Clipping:
    """How gradients are limited before the step, after unscaling. None switches a limit off.

    The order: each parameter's norm, then the norm of all that this leaves, then each element. So
    one parameter that explodes is brought down before it can shrink all others; and as each limit
    only shrinks, all of them hold in the end.

    Attributes:
        max_norm: Limit of the 2-norm over all gradients.
        max_value: Limit of the absolute value of each gradient element.
        max_norm_per_parameter: Limit of the 2-norm of each parameter's gradient.
    """

    max_norm: float | None
    max_value: float | None
    max_norm_per_parameter: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """What an engine is made from."""

    module: nn.Module
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    optimizer: OptimizerOption
    precision: PrecisionOption
    clipping: Clipping
    skip_nonfinite: bool
    world: World


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did.

    Attributes:
        grad_norm: 2-norm of all gradients before clipping. Shape (), float32, on the device.
        applied: False when a non-finite loss or norm made the engine leave the weights alone.
        loss_scale: The factor that the loss was scaled with; None where it is not scaled.
    """

    grad_norm: Tensor
    applied: bool
    loss_scale: float | None = None


EngineState = dict[str, "Tensor"]
"""Model and optimizer state, flat: `model.<parameter>` and `optimizer.<parameter>.<key>`; tensors
only, so that nothing needs pickle; named by parameter, so that any engine can load what another
saved. A parameter that no update has reached yet has no optimizer entries."""


def param_of(entry: str, params: Collection[str]) -> str | None:
    """The parameter that an optimizer entry of an engine's state is about.

    Args:
        entry: `optimizer.<parameter>.<key>`; both parts may hold dots. None for any other name.
        params: Names of the parameters.
    """
    parts = entry.split(".")
    if parts[0] != "optimizer":
        return None
    names = (".".join(parts[1:end]) for end in range(2, len(parts)))
    return next((name for name in names if name in params), None)


class Engine(Protocol):
    """Owns module, optimizer, loss scaling and every collective."""

    def forward_backward(self, window: Window) -> Tensor:
        """Accumulate the gradient of the window's mean loss.

        Returns:
            The window's global mean loss, detached. Shape (), float32, on the device.
        """

    def update(self, lr: float | None) -> UpdateStats:
        """Unscale, check, clip, step, and clear the gradients.

        Raises:
            NonFinite: Loss or gradient norm is not finite and `skip_nonfinite` is off. The weights
                are as before the window.
        """

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> float:
        """Summed loss of this rank's micro-batches over all ranks, without gradient."""

    def module(self) -> nn.Module:
        """The plain module with whole weights, in evaluation mode; gathered where it is sharded."""

    def state(self) -> EngineState:
        """The live tensors; they change with the next update.

        Before the first update it holds what a load may find: the entries of all parameters.
        """

    def load_state(self, state: EngineState) -> None:
        """Take over what `state` gave, strictly.

        Raises:
            CheckpointError: Keys are missing, left over, or of another shape.
        """

    def close(self) -> None:
        """Give back devices and process groups."""
