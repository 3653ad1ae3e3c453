"""Base class of the optimizers that are written here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override


class BaseOptimizer(torch.optim.Optimizer):
    """Runs the closure with gradients and the update without, and survives copying."""

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @abstractmethod
    def _step(self) -> None:
        """Update every parameter that has a gradient."""
