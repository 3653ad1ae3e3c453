"""Schedule-free AdamW whose state can be saved by name, and that evaluating leaves alone."""

from __future__ import annotations

from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor
from typing_extensions import override


class PortableScheduleFreeAdamW(AdamWScheduleFree):
    """Schedulefree's AdamW that comes back from evaluation bit for bit.

    The library moves the weights to the average and back by interpolating, which rounds: how often
    a run evaluates would change what it learns. Here the trained weights are kept aside meanwhile,
    at the cost of one copy of them during evaluation.
    """

    group_state = ("k", "weight_sum", "lr_max")
    """What the groups remember between steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:
            group["train_mode"] = True
        self._trained: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    @override
    def eval(self) -> None:
        """Make the weights the average."""
        if self.param_groups[0]["train_mode"]:
            self._trained = [
                (param, param.clone()) for group in self.param_groups for param in group["params"]
            ]
        super().eval()
        self._forget_empty()

    @torch.no_grad()
    @override
    def train(self) -> None:
        """Make the weights those that are trained."""
        super().train()
        for param, trained in self._trained:
            param.copy_(trained)
        self._trained = []
        self._forget_empty()

    def _forget_empty(self) -> None:
        """Undo the empty entries that switching leaves before the first step: there is no state."""
        for param in [param for param, state in self.state.items() if not state]:
            del self.state[param]
