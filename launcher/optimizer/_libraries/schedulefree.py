"""Schedule-free optimizers that evaluations do not change."""

from __future__ import annotations

from typing import Any

import torch
from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree
from torch import Tensor


class _Portable:
    """Restores the trained weights after an evaluation bit for bit."""

    # The library moves the weights to the average and back by interpolating, which rounds: how
    # often a run evaluates would change what it learns. The cost is one copy of the weights during
    # evaluation.

    group_state = ("k", "weight_sum", "lr_max")
    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:
            # The library starts in evaluation mode, in which it refuses to step.
            group["train_mode"] = True
        self._trained: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def eval(self) -> None:
        if self.param_groups[0]["train_mode"]:
            self._trained = [
                (param, param.clone()) for group in self.param_groups for param in group["params"]
            ]
        super().eval()  # type: ignore[misc]  # the library's, which each class here has behind it
        self._forget_empty()

    @torch.no_grad()
    def train(self) -> None:
        super().train()  # type: ignore[misc]  # likewise
        for param, trained in self._trained:
            param.copy_(trained)
        self._trained = []
        self._forget_empty()

    def _forget_empty(self) -> None:
        # Switching reads the state of each parameter, a defaultdict: empty entries before the first
        # step would be taken for state.
        for param in [param for param, state in self.state.items() if not state]:
            del self.state[param]


class PortableScheduleFreeAdamW(_Portable, AdamWScheduleFree):
    """AdamW of schedulefree."""


class PortableScheduleFreeRAdam(_Portable, RAdamScheduleFree):
    """RAdam of schedulefree."""


class PortableScheduleFreeSGD(_Portable, SGDScheduleFree):
    """SGD of schedulefree."""
