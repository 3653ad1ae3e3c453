"""Check that every tensor of an adapter is trained; name parameters without a gradient."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from launcher.contracts import Sharding
from launcher.errors import ConfigError, Problem

_log = logging.getLogger("trainctl.engine")
# The second matrix of a pair is zero at first, and so is the gradient of the first one until an
# update has changed the second.
_UPDATES = 3
_NAMED = 5


class GradientCheck:
    """Raises if a parameter has had no gradient in the first updates.

    Activation checkpointing, wrappers and renamed layers have cut adapters off the loss without an
    error.

    Args:
        names: Canonical names of the parameters to check; none for no check.
        sharding: Description of the parameters as shards, which may be empty on this rank.
    """

    def __init__(self, names: Collection[str], sharding: Sharding) -> None:
        self._names = frozenset(names)
        self._sharding = sharding
        self._left = _UPDATES if names else 0
        self._seen: Tensor | None = None

    def __call__(
        self, params: Sequence[nn.Parameter], names: Mapping[Tensor, str], lr: float | None
    ) -> None:
        """Note the gradients of an update; the same on every rank.

        Args:
            params: The trained parameters.
            names: Their canonical names.
            lr: The update's learning rate; with 0 nothing changes.
        """
        if not self._left:
            return
        checked = [param for param in params if names[param] in self._names]
        has = torch.stack([_has_gradient(param) for param in checked])
        self._seen = has if self._seen is None else torch.maximum(self._seen, has)
        self._left -= lr != 0
        if self._left:
            return
        self._sharding.add_up({"seen": self._seen})
        without = [
            names[param] for param, n in zip(checked, self._seen.tolist(), strict=True) if not n
        ]
        if without:
            more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
            message = (
                f"{len(without)} of {len(checked)} tensors have had no gradient in {_UPDATES} "
                f"updates: {', '.join(without[:_NAMED])}{more}; if they take no part in the loss, "
                "leave them out with adapter.exclude"
            )
            raise ConfigError([Problem("adapter.targets", message)])


def _has_gradient(param: nn.Parameter) -> Tensor:
    if param.grad is None or not param.grad.numel():
        return torch.zeros((), device=param.device)
    return param.grad.any().float()


def warn_unused(names: Mapping[Tensor, str]) -> None:
    """Log the parameters without a gradient."""
    if idle := [name for p, name in names.items() if p.requires_grad and p.grad is None]:
        more = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
        _log.warning(
            "parameters without a gradient stay as they are until they get one: %s%s; if they "
            "never should, name them in optimizer.groups.frozen",
            ", ".join(idle[:_NAMED]),
            more,
        )
