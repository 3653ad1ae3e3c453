"""A loss scale that finds its own value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from launcher.errors import NonFinite


class DynamicLossScale:
    """Doubled after a while without overflow, halved at each: see `contracts.LossScale`.

    It differs from torch's GradScaler in three ways: its state is tensors, so that nothing is
    pickled; there is a floor, below which the gradients are not too large but wrong; and whether an
    update is skipped is decided by the engine, once, for all ranks.

    Args:
        init_scale: First value; a power of two.
        growth_interval: Updates without overflow before the value is doubled.
        min_scale: The least value; a power of two.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, §3.2; torch.amp.GradScaler.
    """

    def __init__(self, *, init_scale: float, growth_interval: int, min_scale: float) -> None:
        self.value = init_scale
        self._growth_interval = growth_interval
        self._min_scale = min_scale
        self._good_updates = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor. Shape (), as given."""
        return loss * self.value

    def unscale(self, grads: Sequence[Tensor]) -> None:
        """Divide the gradients in place; exact, because the factor is a power of two."""
        if grads:
            torch._foreach_mul_(list(grads), 1.0 / self.value)

    def update(self, *, overflowed: bool) -> None:
        """Halve, or count towards doubling.

        Raises:
            NonFinite: The factor is at its floor and the gradients overflow still.
        """
        if not overflowed:
            self._good_updates += 1
            if self._good_updates >= self._growth_interval:
                self._good_updates = 0
                # Beyond this the scaled loss itself, a float32, could overflow.
                self.value = min(self.value * 2, 2.0**64)
            return
        self._good_updates = 0
        if self.value <= self._min_scale:
            raise NonFinite(
                f"gradients overflow at the least loss scale, {self._min_scale:g}: the model "
                "diverges, or computes numbers beyond 65504; write precision=bf16, or lower the "
                "learning rate"
            )
        self.value = max(self.value / 2, self._min_scale)

    def state(self) -> Mapping[str, Tensor]:
        """Factor and count as tensors of shape (), float64 and int64, on the CPU."""
        return {
            "loss_scale": torch.tensor(self.value, dtype=torch.float64),
            "good_updates": torch.tensor(self._good_updates),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave; a name that is missing or unknown is a KeyError."""
        if odd := state.keys() ^ self.state().keys():
            raise KeyError(*sorted(odd))
        self.value = float(state["loss_scale"])
        self._good_updates = int(state["good_updates"])
