"""Contract of every kind of `parallelism`; a new kind is tested as soon as its file exists.

The reference is `single`. Two correct programs differ by rounding, and Adam amplifies the rounding
of gradients that are zero (key biases), so that a weight may differ by more than any fixed bound:
what is allowed is measured, as the difference between two cuts of the same windows in one process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launcher.contracts import ParallelismOption, Request
from tests.contract.engine_bench import (
    CLIPPINGS,
    NUM_SAMPLES,
    SAMPLES_PER_STEP,
    STEPS,
    Case,
    Trajectory,
    optimizer_option,
    option,
    run_cases,
)
from tests.distributed import RankError, run_on_ranks

CONF = Path(__file__).parents[2] / "conf" / "parallelism"
PRESETS = sorted(path.stem for path in CONF.glob("[!_]*.yaml"))
OPTIMIZERS = (
    "adamw",
    "adafactor",
    "adafactor_t5",
    "stable_adamw",
    "sgd",
    "lion",
    "lamb",
    "muon",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "float64": torch.float64}
LIMITS = {"float32": 1e-5, "float64": 1e-8}


def parallelism(preset: str, *words: str, ranks: int = 2) -> ParallelismOption:
    processes = [f"launch.processes={ranks}"]
    batch = [f"accumulation.samples_per_step={SAMPLES_PER_STEP}", "accumulation.micro_batch_size=1"]
    found: ParallelismOption = option(
        "parallelism", f"parallelism={preset}", *words, *processes, *batch
    )
    return found


def ranks_of(preset: str) -> list[int]:
    """Two and three, or one for an engine of one process."""
    chosen = parallelism(preset, ranks=1)
    return [ranks for ranks in (2, 3) if fits(chosen, ranks)] or [1]


def fits(chosen: ParallelismOption, ranks: int) -> bool:
    try:
        chosen.layout(ranks)
    except ValueError:
        return False
    return True


def cases(preset: str, ranks: int, dtype: str) -> list[Case]:
    chosen = parallelism(preset, ranks=ranks)
    return [
        Case(
            parallelism=chosen,
            optimizer=optimizer_option(optimizer),
            accumulation=accumulation,
            clipping=clipping,
            dtype=DTYPES[dtype],
        )
        for optimizer in OPTIMIZERS
        for accumulation in (1, 4)
        for clipping in CLIPPINGS
    ]


@cache
def runs(preset: str, ranks: int, dtype: str) -> list[list[Trajectory]]:
    """Every case on every rank, all in one world: the outer list is that of the cases."""
    by_rank = run_on_ranks(run_cases, cases(preset, ranks, dtype), ranks=ranks, timeout_s=600)
    return [list(each) for each in zip(*by_rank, strict=True)]


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    assert len(found) == len(expected)
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def distance(found: Tensor, expected: Tensor, path_length: float) -> float:
    """Distance of two tensors over their size, or over how far lr × steps could move them."""
    reach = path_length * math.sqrt(expected.numel())
    difference: float = (found.double() - expected.double()).norm().item()
    size: float = max(expected.double().norm().item(), reach)
    return difference / size


def distances(found: Trajectory, expected: Trajectory) -> dict[str, float]:
    path_length = sum(lr for lr in expected.lrs if lr is not None)
    assert found.weights.keys() == expected.weights.keys()
    return {
        name: distance(found.weights[name], weight, path_length)
        for name, weight in expected.weights.items()
    }


def allowed(cut: Sequence[float], reference: Sequence[float]) -> float:
    return max(1e-6, 3 * relative(cut, reference))


def check_same_training(found: list[Trajectory], reference: Trajectory, cut: Trajectory) -> None:
    """Compare a run on some ranks with `single`, and with how much another cut of it differs."""
    dtype = "float64" if reference.weights["embed.weight"].dtype == torch.float64 else "float32"
    for own in found:
        assert own.last_step == STEPS
        assert own.lrs == reference.lrs
        assert relative(own.losses, reference.losses) <= allowed(cut.losses, reference.losses)
        assert relative(own.norms, reference.norms) <= allowed(cut.norms, reference.norms)
        assert [s["samples"] for s in own.scores] == [s["samples"] for s in reference.scores]
        assert [s["order"] for s in own.scores] == [s["order"] for s in reference.scores]
        losses = [s["eval_loss"] for s in own.scores], [s["eval_loss"] for s in reference.scores]
        assert relative(*losses) <= 1e-5
    floor = distances(cut, reference)
    for name, value in distances(found[0], reference).items():
        assert value <= max(LIMITS[dtype], 3 * floor[name]), f"{name}: {value:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("preset", "ranks"), [(preset, ranks) for preset in PRESETS for ranks in ranks_of(preset)]
)
def test_it_trains_as_single_does(preset: str, ranks: int, optimizer: str, dtype: str) -> None:
    """Losses, norms, scores and weights, for every accumulation and clipping."""
    compared = 0
    listed = cases(preset, ranks, dtype)
    for place, case in enumerate(listed):
        if case.optimizer != optimizer_option(optimizer):
            continue
        # The reference takes the whole window at once; its other cut is the floor.
        first = place - place % (2 * len(CLIPPINGS)) + place % len(CLIPPINGS)
        [reference] = runs("single", 1, dtype)[first]
        [cut] = runs("single", 1, dtype)[first + len(CLIPPINGS)]
        check_same_training(runs(preset, ranks, dtype)[place], reference, cut)
        compared += 1
    assert compared == 2 * len(CLIPPINGS)


@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS} - {"muon"}))
def test_rounding_alone_changes_no_loss(optimizer: str) -> None:
    """Or a loss would be allowed more than 1e-6. Torch's Muon orthogonalises in bfloat16."""
    first = OPTIMIZERS.index(optimizer) * 2 * len(CLIPPINGS)
    for place in range(first, first + len(CLIPPINGS)):
        [reference] = runs("single", 1, "float32")[place]
        [cut] = runs("single", 1, "float32")[place + len(CLIPPINGS)]
        assert relative(cut.losses, reference.losses) <= 1e-6 / 3
        assert relative(cut.norms, reference.norms) <= 1e-6 / 3


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_the_limits_are_met(clipping: str) -> None:
    """Or the comparison above would show nothing of clipping."""
    place = list(CLIPPINGS).index(clipping)
    others = [i for i in range(len(CLIPPINGS)) if i != place]
    [limited] = runs("single", 1, "float64")[place]
    assert max(limited.norms) > 0.3
    for other in others:
        [differently] = runs("single", 1, "float64")[other]
        assert relative(limited.losses, differently.losses) > 1e-6


DISTRIBUTED = [(preset, ranks) for preset in PRESETS for ranks in ranks_of(preset) if ranks > 1]
ADAMW = "adamw"


def case_of(preset: str, ranks: int, **values: Any) -> Case:
    case = Case(parallelism=parallelism(preset, ranks=ranks), optimizer=optimizer_option(ADAMW))
    return replace(case, **values)


@pytest.mark.parametrize(("preset", "ranks"), DISTRIBUTED)
def test_every_sample_is_read_once(preset: str, ranks: int) -> None:
    by_rank = runs(preset, ranks, "float32")[0]
    seen = [i for own in by_rank for step in own.own_indices for i in step]
    assert sorted(seen) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize("request_", [Request.STOP_SIGTERM, Request.STOP_SIGINT], ids=str)
@pytest.mark.parametrize(("preset", "ranks"), DISTRIBUTED)
def test_all_ranks_stop_after_the_step_in_which_one_asks(
    preset: str, ranks: int, request_: Request
) -> None:
    asked = [{asking: (step, request_)} for asking in range(ranks) for step in (1, 3)]
    check_stop([case_of(preset, ranks, asked=each) for each in asked], ranks)


def check_stop(cases: Sequence[Case], ranks: int, *, timeout_s: float = 120) -> None:
    expected = [step for case in cases for step, _ in case.asked.values()]
    for own in run_on_ranks(run_cases, cases, ranks=ranks, timeout_s=timeout_s):
        assert [each.last_step for each in own] == expected


@pytest.mark.parametrize(("preset", "ranks"), DISTRIBUTED)
def test_dropout_differs_between_data_ranks_and_repeats(preset: str, ranks: int) -> None:
    case = case_of(preset, ranks, dropout=0.3)
    by_rank = run_on_ranks(run_cases, [case, case], ranks=ranks, timeout_s=120)
    for own, again in by_rank:
        assert own.draws == again.draws
        assert own.losses == again.losses
        assert all(torch.equal(own.weights[name], again.weights[name]) for name in own.weights)
    draws = [tuple(own.draws) for own, _ in by_rank]
    assert len(set(draws)) == ranks
    assert len({draw for own in draws for draw in own}) == ranks * STEPS


POISONED = 5


@pytest.mark.parametrize(("preset", "ranks"), DISTRIBUTED)
def test_a_non_finite_loss_of_one_rank_ends_all_with_the_same_words(
    preset: str, ranks: int
) -> None:
    by_rank = run_on_ranks(run_cases, [case_of(preset, ranks, poisoned=POISONED)], ranks=ranks)
    [error] = {own.error for [own] in by_rank}
    assert error is not None
    assert "the loss is nan" in error[1]
    assert POISONED in error[2]
    assert len({own.last_step for [own] in by_rank}) == 1


@pytest.mark.parametrize(("preset", "ranks"), DISTRIBUTED)
def test_a_non_finite_window_is_skipped_by_all_ranks(preset: str, ranks: int) -> None:
    case = case_of(preset, ranks, poisoned=POISONED, skip_nonfinite=True)
    alone = case_of("single", 1, poisoned=POISONED, skip_nonfinite=True)
    [[reference]] = run_on_ranks(run_cases, [alone], ranks=1)
    assert reference.applied.count(False) == 1
    for [own] in run_on_ranks(run_cases, [case], ranks=ranks):
        assert own.applied == reference.applied
        assert own.last_step == STEPS


TRAJECTORY_DEFECTS = (
    "mean of means",
    "schedule times ranks",
    "no all-reduce",
    "norm times ranks",
    "another rank's data",
    "evaluation counted per rank",
)


@cache
def spoiled() -> dict[tuple[str, int], list[Trajectory]]:
    """Every rank's trajectory for each defect and accumulation, all in one world."""
    listed = [(defect, accumulation) for defect in TRAJECTORY_DEFECTS for accumulation in (1, 4)]
    planted = [case_of("ddp", 2, planted=d, accumulation=a) for d, a in listed]
    by_rank = run_on_ranks(run_cases, planted)
    return {each: [own[i] for own in by_rank] for i, each in enumerate(listed)}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("defect", TRAJECTORY_DEFECTS)
def test_a_planted_defect_is_found(defect: str, accumulation: int) -> None:
    [reference], [cut] = runs("single", 1, "float32")[0], runs("single", 1, "float32")[3]
    with pytest.raises(AssertionError):
        check_same_training(spoiled()[defect, accumulation], reference, cut)


def test_a_rank_that_stops_alone_is_found() -> None:
    case = case_of("ddp", 2, planted="a rank stops alone", asked={1: (3, Request.STOP_SIGTERM)})
    with pytest.raises((RankError, AssertionError)):
        check_stop([case], 2, timeout_s=15)


SHARDED = ("adafactor", "adafactor_t5", "stable_adamw", "lamb", "adamw", "lion", "sgd")
WHOLE_TENSOR = SHARDED[:4]
"""Optimizers whose update needs a number of the whole tensor."""


@cache
def sharded(planted: str, ranks: int) -> dict[str, list[Trajectory]]:
    """Every rank's trajectory for each optimizer, stepping rows of the parameters."""
    listed = SHARDED if planted == "sharded" else WHOLE_TENSOR
    planned = [
        case_of(
            "ddp",
            ranks,
            planted=planted,
            optimizer=optimizer_option(optimizer),
            dtype=torch.float64,
        )
        for optimizer in listed
    ]
    by_rank = run_on_ranks(run_cases, planned, ranks=ranks)
    return {optimizer: [own[i] for own in by_rank] for i, optimizer in enumerate(listed)}


def check_sharded(optimizer: str, ranks: int, planted: str) -> None:
    place = OPTIMIZERS.index(optimizer) * 2 * len(CLIPPINGS)
    [reference] = runs("single", 1, "float64")[place]
    [cut] = runs("single", 1, "float64")[place + len(CLIPPINGS)]
    check_same_training(sharded(planted, ranks)[optimizer], reference, cut)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("optimizer", SHARDED)
def test_a_sharding_reaches_the_optimizer(optimizer: str, ranks: int) -> None:
    check_sharded(optimizer, ranks, "sharded")


@pytest.mark.parametrize("optimizer", WHOLE_TENSOR)
def test_an_optimizer_that_takes_shards_for_tensors_is_found(optimizer: str) -> None:
    with pytest.raises(AssertionError):
        check_sharded(optimizer, 2, "shards taken for tensors")
