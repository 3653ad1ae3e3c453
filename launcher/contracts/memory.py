"""Bytes of a model's state, and where an engine keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes of the whole model's state, as if one rank held it all.

    Attributes:
        weights: Parameters, in the formats of training.
        trained: Those of them that are trained.
        gradients: Their gradients.
        optimizer: State of the optimizer and of the precision, by its keys.
        buffers: Buffers of the modules.
        block: Parameters of the largest block, whose parameters are gathered together.
        others: Parameters outside of the blocks.
    """

    weights: int
    trained: int
    gradients: int
    optimizer: Mapping[str, int]
    buffers: int
    block: int
    others: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Bytes of the state on the rank that has most, and what it sends.

    Attributes:
        weights, gradients, optimizer: On its device.
        communication: Buffers of collectives and gathered parameters, on its device.
        host: In the host's memory, by what it is.
        sent: Bytes that the rank sends in an optimizer step with one micro-batch.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int = 0
    host: Mapping[str, int] = field(default_factory=dict)
    sent: int = 0
