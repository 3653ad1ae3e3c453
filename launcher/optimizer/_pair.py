"""Two optimizers that look like one: each over its own parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override


class Pair(torch.optim.Optimizer):
    """Steps two optimizers as one.

    Its `param_groups` are theirs, the first's before the second's, and its `state` is the one dict
    that both write to, so that whoever sets learning rates or saves state sees a single optimizer.

    Args:
        first: Over some parameters.
        second: Over others.
    """

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._members = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share(self.param_groups)

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for member in self._members:
            member.step()
        return loss

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share(self.param_groups)

    def _share(self, groups: list[dict[str, Any]]) -> None:
        """Give both members their groups, and one state between them."""
        start = 0
        for member in self._members:
            count = len(member.param_groups)
            member.param_groups = groups[start : start + count]
            member.state = self.state
            start += count
