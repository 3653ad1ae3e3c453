"""The judgement of a cell, on records made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from launcher.verify.compare import NO_FLOOR, Reference, first_difference, floor_of, unstable
from launcher.verify.measure import distance, limits_of, relative
from launcher.verify.trajectory import Trajectory

RUN = Trajectory(
    losses=[3.0, 2.0, 1.5],
    norms=[1.0, 0.5, 0.25],
    lrs=[0.1, 0.1, 0.1],
    applied=[True] * 3,
    samples=[[0, 1], [2, 3], [4, 5]],
    scores={"eval_loss": 1.4},
    distances=[{"a.weight": 0.0, "b.weight": 0.0}] * 3,
    modules={"b.weight": "Linear"},
)
HALVES = [[[0], [2], [4]], [[1], [3], [5]]]


def reference(floor: Any = NO_FLOOR) -> Reference:
    return Reference(RUN, floor, limits_of("float32"), "eval_loss")


def ranks(**changes: Any) -> list[Trajectory]:
    """Two ranks that each read a half; the changes are the second one's."""
    first = replace(RUN, samples=HALVES[0])
    return [first, replace(RUN, samples=HALVES[1], data_rank=1, distances=[], **changes)]


def test_equal_runs() -> None:
    assert first_difference(ranks(), reference()) is None
    assert first_difference(ranks(losses=[3.0, 2.0 * (1 + 9e-7), 1.5]), reference()) is None


@pytest.mark.parametrize(
    ("changes", "quantity", "step"),
    [
        ({"losses": [3.0, 2.0 * (1 + 2e-6), 9.0]}, "loss", 2),
        ({"losses": [3.0, math.nan, 9.0]}, "loss", 2),
        ({"norms": [1.0, 0.5, 0.26]}, "norm", 3),
        ({"lrs": [0.1, 0.2, 0.1]}, "lr", 2),
        ({"applied": [True, False, True]}, "update", 2),
        ({"losses": [3.0, 2.0]}, "steps", 3),
        ({"scores": {"eval_loss": 1.41}}, "score", 3),
    ],
)
def test_the_first_difference(changes: dict[str, Any], quantity: str, step: int) -> None:
    found = first_difference(ranks(**changes), reference())
    assert found is not None
    assert (found.quantity, found.step) == (quantity, step)
    assert found.text.startswith("rank 1: ")


def test_a_sample_that_is_read_twice() -> None:
    found = first_difference([*ranks()[:1], replace(ranks()[0], data_rank=1)], reference())
    assert found is not None
    assert (found.quantity, found.step) == ("samples", 1)
    # Ranks that share a share of the data, as tensor parallel ones do, read the same.
    both = [*ranks()[:1] * 2, *ranks()[1:] * 2]
    assert first_difference(both, reference()) is None


def test_a_parameter_is_named_with_its_module() -> None:
    wrong: list[dict[str, float] | None] = [
        {"a.weight": 1e-6, "b.weight": 1e-6},
        {"a.weight": 1e-6, "b.weight": 4e-5},
    ]
    found = first_difference([replace(RUN, distances=[*wrong, wrong[1]])], reference())
    assert found is not None
    assert (found.step, found.tensor, found.module, found.tensors) == (2, "b.weight", "Linear", 1)


def test_the_floor_widens_what_is_allowed() -> None:
    # Rounding shows at another step in another program.
    noisy: list[dict[str, float] | None] = [{}, {"b.weight": 2e-5}, {}]
    floor = floor_of(RUN, replace(RUN, losses=[3.0, 2.0 * (1 + 1e-6), 1.5], distances=noisy), "")
    moved: list[dict[str, float] | None] = [{"a.weight": 1e-6, "b.weight": 5e-5}] * 3
    cell = [replace(RUN, losses=[3.0, 2.0 * (1 + 2e-6), 1.5], distances=moved)]
    assert first_difference(cell, reference()) is not None
    assert first_difference(cell, reference(floor)) is None


def test_a_floor_that_rounding_cannot_explain() -> None:
    floor = floor_of(RUN, replace(RUN, losses=[3.0, 2.01, 1.5]), "")
    assert unstable(reference()) is None
    found = unstable(reference(floor))
    assert found is not None
    assert found.quantity == "loss"


def test_distances() -> None:
    assert relative(1.0, 1.0) == 0
    assert relative(math.inf, 1.0) == math.inf
    ones = torch.ones(4)
    assert distance(ones * 1.5, ones, 0.0) == pytest.approx(0.5)
    assert distance(torch.zeros(4) + 1e-3, torch.zeros(4), 1e-2) == pytest.approx(0.1)
    assert distance(ones * math.nan, ones, 0.0) == math.inf
