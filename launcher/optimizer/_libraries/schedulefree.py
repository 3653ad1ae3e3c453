"""Schedule-free optimizers whose state can be saved by name, and that evaluating leaves alone."""

from __future__ import annotations

from typing import Any

import torch
from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree
from torch import Tensor


class _Portable:
    """Comes back from evaluation bit for bit.

    The library moves the weights to the average and back by interpolating, which rounds: how often
    a run evaluates would change what it learns. Here the trained weights are kept aside meanwhile,
    at the cost of one copy of them during evaluation.
    """

    group_state = ("k", "weight_sum", "lr_max")
    """State of the groups between steps."""
    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:
            group["train_mode"] = True
        self._trained: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def eval(self) -> None:
        """Make the weights the average."""
        if self.param_groups[0]["train_mode"]:
            self._trained = [
                (param, param.clone()) for group in self.param_groups for param in group["params"]
            ]
        super().eval()  # type: ignore[misc]  # the library's, which each class here has behind it
        self._forget_empty()

    @torch.no_grad()
    def train(self) -> None:
        """Make the weights those that are trained."""
        super().train()  # type: ignore[misc]  # likewise
        for param, trained in self._trained:
            param.copy_(trained)
        self._trained = []
        self._forget_empty()

    def _forget_empty(self) -> None:
        """Undo the empty entries that switching leaves before the first step: there is no state."""
        for param in [param for param, state in self.state.items() if not state]:
            del self.state[param]


class PortableScheduleFreeAdamW(_Portable, AdamWScheduleFree):
    """AdamW of schedulefree."""


class PortableScheduleFreeRAdam(_Portable, RAdamScheduleFree):
    """RAdam of schedulefree."""


class PortableScheduleFreeSGD(_Portable, SGDScheduleFree):
    """SGD of schedulefree."""
