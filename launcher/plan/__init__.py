"""Memory, speed and traffic of a config before a start, without allocating weights.

The sizes of the state are arithmetic; those of activations come from one forward and backward pass
of the real network and task with tensors that only have a shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.plan._estimate import Plan, Planner
from launcher.plan._live import LiveBytes
from launcher.plan._search import Change, best_combination, single_changes

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.plan._passes import Network

__all__ = [
    "Change",
    "LiveBytes",
    "Plan",
    "Planner",
    "best_combination",
    "build_network",
    "single_changes",
]


def build_network(config: RunConfig) -> Network:
    """Build the network on the meta device and add up its state."""
    from launcher.plan import _passes

    return _passes.build_network(config)
