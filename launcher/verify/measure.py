"""Distance between two runs of the same training, and the distance that rounding explains.

Two correct programs add numbers in another order, and Adam divides the rounding error of a gradient
that is zero (a key's bias has none) by its own size, so that a weight may differ by more than any
fixed bound. What is allowed is therefore measured: three times the distance between two cuts of the
same windows in one process, and a fixed limit where that is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The floor is one sample of the rounding error: another correct order of sums may be further away.
FACTOR = 3.0
"""Allowed multiple of the floor."""
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Limits:
    """Relative deviations that are allowed whatever the floor is.

    Attributes:
        curve: Loss and gradient norm of a step.
        weights: A parameter; see `distance`.
        score: A score of the evaluation after the last step.
        floor: Losses and norms of two cuts in one process; beyond it rounding is no explanation.
    """

    curve: float
    weights: float
    score: float
    floor: float


_BY_FORMAT = {
    "float64": Limits(curve=1e-8, weights=1e-8, score=1e-8, floor=1e-5),
    "float32": Limits(curve=1e-6, weights=1e-5, score=1e-5, floor=1e-3),
}
# 16-bit formats: a single rounding is 4e-3 in bfloat16.
_LOW = Limits(curve=1e-3, weights=1e-2, score=1e-2, floor=5e-2)


def limits_of(number_format: str) -> Limits:
    """Return the limits of a number format, named as in torch: the coarsest one of a step."""
    return _BY_FORMAT.get(number_format, _LOW)


def relative(found: float, expected: float) -> float:
    """Return the relative deviation of a number; infinite where only one of the two is finite."""
    if found == expected or (math.isnan(found) and math.isnan(expected)):
        return 0.0
    if not (math.isfinite(found) and math.isfinite(expected)):
        return math.inf
    return abs(found - expected) / max(abs(expected), _TINY)


def largest(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative deviation of two sequences of the same length."""
    pairs = zip(found, expected, strict=True)
    return max((relative(a, b) for a, b in pairs), default=0.0)


def allowed(limit: float, floor: float) -> float:
    """Return the deviation that is allowed where rounding alone makes a deviation of `floor`."""
    return max(limit, FACTOR * floor)


def distance(found: Tensor, expected: Tensor, path_length: float) -> float:
    """Return the distance of a parameter from the reference's, relative to its size.

    `path_length` is the sum of the learning rates so far. It replaces the size where that is
    smaller: a parameter that starts at zero is small, so that rounding would count as a difference.
    """
    reach = path_length * math.sqrt(expected.numel())
    difference: float = (found.double() - expected.double()).norm().item()
    size: float = max(expected.double().norm().item(), reach, _TINY)
    return difference / size if math.isfinite(difference) else math.inf
