"""A loss scale that finds its own value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from launcher.errors import NonFinite


class DynamicLossScale:
    """Loss scale that doubles after `growth_interval` updates and halves at each overflow.

    Differences to torch's GradScaler: the state is tensors, so that nothing is pickled; below a
    minimum the run ends, because the gradients are then wrong, not too large; and the engine
    decides once for all ranks whether an update is skipped.

    Args:
        init_scale: First value; a power of two.
        growth_interval: Updates without overflow before the value is doubled.
        min_scale: Smallest value; a power of two.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, §3.2; torch.amp.GradScaler.
    """

    def __init__(self, *, init_scale: float, growth_interval: int, min_scale: float) -> None:
        self.value = init_scale
        self._growth_interval = growth_interval
        self._min_scale = min_scale
        self._good_updates = 0

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the factor."""
        return loss * self.value

    def unscale(self, grads: Sequence[Tensor]) -> None:
        """Divide the gradients in place; exact, because the factor is a power of two."""
        if grads:
            torch._foreach_mul_(list(grads), 1.0 / self.value)

    def update(self, *, overflowed: bool) -> None:
        """Halve, or count towards doubling.

        Raises:
            NonFinite: Gradients overflow at the smallest factor.
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
        """Return factor and count as tensors of shape (), float64 and int64, on the CPU."""
        return {
            "loss_scale": torch.tensor(self.value, dtype=torch.float64),
            "good_updates": torch.tensor(self._good_updates),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; a missing or unknown name is a KeyError."""
        if odd := state.keys() ^ self.state().keys():
            raise KeyError(*sorted(odd))
        self.value = float(state["loss_scale"])
        self._good_updates = int(state["good_updates"])
