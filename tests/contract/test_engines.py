"""Contract of every kind of `parallelism`; a new kind is tested as soon as its file exists.

The reference is `single`. Two correct programs differ by rounding, and Adam amplifies the rounding
of gradients that are zero (key biases), so that a weight may differ by more than any fixed bound:
what is allowed is measured, as the difference between two cuts of the same windows in one process.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.contracts import ParallelismOption, Request
from launcher.verify.measure import distance
from tests.contract.engine_bench import (
    CLIPPINGS,
    NUM_SAMPLES,
    OPTIMIZERS,
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
WITH_ALL_OPTIMIZERS = ("single", "ddp")
"""Engines that the standard suite runs with every optimizer; others differ in the wrapping only."""
WRAPPED = ("accelerate",)
"""Kinds whose engines are those of other kinds, except for the wrapping of the module."""
ADAMW = "adamw"
SAMPLED = (ADAMW, "adafactor")
"""Optimizers that the standard suite runs on other engines; `-m slow` runs all of them."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}
LIMITS = {"float32": 1e-5, "float64": 1e-8}


def parallelism(preset: str, *words: str, ranks: int = 2) -> ParallelismOption:
    processes = [f"launch.processes={ranks}"]
    batch = [f"accumulation.samples_per_step={SAMPLES_PER_STEP}", "accumulation.micro_batch_size=1"]
    found: ParallelismOption = option(
        "parallelism", f"parallelism={preset}", *words, *processes, *batch
    )
    return found


PRESETS = [
    path.stem
    for path in sorted(CONF.glob("[!_]*.yaml"))
    if not parallelism(path.stem, ranks=1).unsupported_on("cpu")
]


def ranks_of(preset: str) -> list[int]:
    """Two and three, four for replicas of shards, or one for an engine of one process."""
    chosen = parallelism(preset, ranks=1)
    return [ranks for ranks in (2, 3, 4) if fits(chosen, ranks)][:2] or [1]


def fits(chosen: ParallelismOption, ranks: int) -> bool:
    try:
        chosen.layout(ranks)
    except ValueError:
        return False
    return True


Setting = tuple[str, int, str]
"""Optimizer, accumulation and clipping of a case."""
SETTINGS: list[Setting] = list(itertools.product(OPTIMIZERS, (1, 4), CLIPPINGS))


def settings(preset: str, ranks: int, dtype: str, *, every: bool) -> list[Setting]:
    """Every setting, or both accumulations of every optimizer with one of the clippings.

    Which one depends on the optimizer, the ranks and the number format: over the worlds of an
    engine, every optimizer meets every clipping.
    """
    if every:
        return SETTINGS
    start = ranks + list(DTYPES).index(dtype)
    names = list(CLIPPINGS)
    optimizers = OPTIMIZERS if preset in WITH_ALL_OPTIMIZERS else SAMPLED
    return [
        (optimizer, accumulation, clipping)
        for optimizer, accumulation, clipping in SETTINGS
        if optimizer in optimizers
        and clipping == names[(OPTIMIZERS.index(optimizer) + start) % len(names)]
    ]


@cache
def runs(preset: str, ranks: int, dtype: str, *, every: bool) -> dict[Setting, list[Trajectory]]:
    """Every rank's trajectory by setting, all in one world."""
    chosen = parallelism(preset, ranks=ranks)
    listed = settings(preset, ranks, dtype, every=every)
    cases = [
        Case(
            parallelism=chosen,
            optimizer=optimizer_option(optimizer),
            # Four micro-batches on four ranks do not divide the window.
            accumulation=min(accumulation, 3) if ranks == 4 else accumulation,
            clipping=clipping,
            dtype=DTYPES[dtype],
        )
        for optimizer, accumulation, clipping in listed
    ]
    by_rank = run_on_ranks(run_cases, cases, ranks=ranks, timeout_s=600)
    return dict(zip(listed, map(list, zip(*by_rank, strict=True)), strict=True))


def reference_and_cut(
    dtype: str, optimizer: str, clipping: str = "norm"
) -> tuple[Trajectory, Trajectory]:
    """`single` with the whole window at once, and with another cut of it."""
    alone = runs("single", 1, dtype, every=True)
    [reference], [cut] = (alone[optimizer, accumulation, clipping] for accumulation in (1, 4))
    return reference, cut


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    assert len(found) == len(expected)
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


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


WORLDS = [(preset, ranks) for preset in PRESETS for ranks in ranks_of(preset)]
TRAINED = [
    (preset, ranks, optimizer, dtype)
    for (preset, ranks), optimizer, dtype in itertools.product(WORLDS, OPTIMIZERS, DTYPES)
    if dtype in parallelism(preset, ranks=1).master_dtypes
]


def is_in_standard_suite(
    preset: str, ranks: int, optimizer: str = ADAMW, dtype: str = "float32"
) -> bool:
    """Engines are many: two presets of each kind are sampled."""
    if preset in WITH_ALL_OPTIMIZERS:
        return True
    sampled = preset in {of_kind(preset)[0], of_kind(preset)[-1]}
    first = ranks == ranks_of(preset)[0] and optimizer in SAMPLED and dtype == "float32"
    return sampled and first


@cache
def of_kind(preset: str) -> list[str]:
    """The presets of the same kind."""
    kind = parallelism(preset, ranks=1).kind
    return [each for each in PRESETS if parallelism(each, ranks=1).kind == kind]


def is_first_of_kind(preset: str) -> bool:
    """Presets of a kind agree on stops and errors in the same code."""
    is_wrapped = parallelism(preset, ranks=1).kind in WRAPPED
    return preset == of_kind(preset)[0] and not is_wrapped


def check_world(preset: str, ranks: int, optimizer: str, dtype: str, *, every: bool) -> int:
    """Compare the cases of an optimizer with `single`; return how many there were."""
    compared = 0
    for setting, found in runs(preset, ranks, dtype, every=every).items():
        if setting[0] == optimizer:
            check_same_training(found, *reference_and_cut(dtype, optimizer, setting[2]))
            compared += 1
    return compared


@pytest.mark.parametrize(
    ("preset", "ranks", "optimizer", "dtype"),
    [each for each in TRAINED if is_in_standard_suite(*each)],
)
def test_it_trains_as_single_does(preset: str, ranks: int, optimizer: str, dtype: str) -> None:
    """Losses, norms, scores and weights, for every accumulation."""
    assert check_world(preset, ranks, optimizer, dtype, every=False) in {2, 2 * len(CLIPPINGS)}


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "ranks", "optimizer", "dtype"), TRAINED)
def test_it_trains_as_single_does_with_every_clipping(
    preset: str, ranks: int, optimizer: str, dtype: str
) -> None:
    assert check_world(preset, ranks, optimizer, dtype, every=True) == 2 * len(CLIPPINGS)


def test_every_optimizer_meets_every_clipping() -> None:
    worlds = [(ranks, dtype) for ranks in (2, 3) for dtype in DTYPES]
    met = [{*settings("ddp", *world, every=False)} for world in worlds]
    assert set[Setting]().union(*met) == {*SETTINGS}
    for each in met:
        assert {clipping for *_, clipping in each} == {*CLIPPINGS}


@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS} - {"muon"}))
def test_rounding_alone_changes_no_loss(optimizer: str) -> None:
    """Or a loss would be allowed more than 1e-6. Torch's Muon orthogonalises in bfloat16."""
    for clipping in CLIPPINGS:
        reference, cut = reference_and_cut("float32", optimizer, clipping)
        assert relative(cut.losses, reference.losses) <= 1e-6 / 3
        assert relative(cut.norms, reference.norms) <= 1e-6 / 3


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_the_limits_are_met(clipping: str) -> None:
    """Or the comparison above would show nothing of clipping."""
    limited, _ = reference_and_cut("float64", ADAMW, clipping)
    assert max(limited.norms) > 0.3
    for other in {*CLIPPINGS} - {clipping}:
        differently, _ = reference_and_cut("float64", ADAMW, other)
        assert relative(limited.losses, differently.losses) > 1e-6


DISTRIBUTED = [
    pytest.param(
        *world,
        marks=()
        if is_in_standard_suite(*world) and is_first_of_kind(world[0])
        else pytest.mark.slow,
    )
    for world in WORLDS
    if world[1] > 1
]


def case_of(preset: str, ranks: int, **values: Any) -> Case:
    case = Case(parallelism=parallelism(preset, ranks=ranks), optimizer=optimizer_option(ADAMW))
    return replace(case, **values)


@pytest.mark.parametrize(("preset", "ranks"), DISTRIBUTED)
def test_every_sample_is_read_once(preset: str, ranks: int) -> None:
    by_rank = next(iter(runs(preset, ranks, "float32", every=False).values()))
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
    found = spoiled()[defect, accumulation]  # a `RankError` would be an AssertionError, too
    with pytest.raises(AssertionError):
        check_same_training(found, *reference_and_cut("float32", ADAMW))


def test_a_rank_that_stops_alone_is_found() -> None:
    case = case_of("ddp", 2, planted="a rank stops alone", asked={1: (3, Request.STOP_SIGTERM)})
    with pytest.raises((RankError, AssertionError)):
        check_stop([case], 2, timeout_s=5)


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


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("optimizer", SHARDED)
def test_a_sharding_reaches_the_optimizer(optimizer: str, ranks: int) -> None:
    found = sharded("sharded", ranks)[optimizer]
    check_same_training(found, *reference_and_cut("float64", optimizer))


@pytest.mark.parametrize("optimizer", WHOLE_TENSOR)
def test_an_optimizer_that_takes_shards_for_tensors_is_found(optimizer: str) -> None:
    found = sharded("shards taken for tensors", 2)[optimizer]
    with pytest.raises(AssertionError):
        check_same_training(found, *reference_and_cut("float64", optimizer))
