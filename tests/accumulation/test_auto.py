"""The option accumulation=auto: what it may find, and that nothing else depends on it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.accumulation.auto import Auto
from launcher.accumulation.samples import Samples
from launcher.accumulation.tokens import Tokens


def auto(**values: Any) -> Auto:
    defaults = {
        "kind": "auto",
        "samples_per_step": 48,
        "tokens_per_step": None,
        "max_micro_batch_size": None,
        "memory_limit_gib": None,
        "memory_margin": 0.1,
    }
    return Auto.model_validate_json(json.dumps({**defaults, **values}))


@pytest.mark.parametrize(
    ("values", "ranks", "candidates"),
    [
        ({}, 1, [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]),
        ({}, 4, [1, 2, 3, 4, 6, 12]),
        ({"max_micro_batch_size": 7}, 4, [1, 2, 3, 4, 6]),
        ({"max_micro_batch_size": 99}, 4, [1, 2, 3, 4, 6, 12]),
        ({"samples_per_step": 7}, 1, [1, 7]),
        ({"samples_per_step": 1}, 1, [1]),
        ({"samples_per_step": None, "tokens_per_step": 640}, 2, [1, 2, 4, 5, 10, 20]),
    ],
)
def test_candidates_are_the_divisors_of_a_ranks_share(
    values: dict[str, Any], ranks: int, candidates: list[int]
) -> None:
    assert auto(**values).candidates(seq_len=16, ranks=ranks) == candidates


@pytest.mark.parametrize("values", [{}, {"samples_per_step": None, "tokens_per_step": 768}])
def test_whatever_is_found_the_global_batch_is_the_same(values: dict[str, Any]) -> None:
    option = auto(**values)
    bound = option.plan(seq_len=16, ranks=2)
    assert bound.micro_batch_size == 24
    for size in option.candidates(seq_len=16, ranks=2):
        plan = option.decided(size).plan(seq_len=16, ranks=2)
        assert plan.micro_batch_size == size
        assert plan.samples_per_step == bound.samples_per_step == 48
        assert plan.tokens_per_step == bound.tokens_per_step == 768


def test_the_decision_is_of_the_kind_that_was_asked_for() -> None:
    assert auto().decided(3) == Samples(kind="samples", micro_batch_size=3, samples_per_step=48)
    by_tokens = auto(samples_per_step=None, tokens_per_step=768)
    assert by_tokens.decided(3) == Tokens(kind="tokens", micro_batch_size=3, tokens_per_step=768)


def test_the_plan_says_that_it_is_a_bound() -> None:
    assert str(auto().plan(seq_len=16, ranks=2)) == (
        "48 samples (768 tokens) per step over ranks 2; the micro-batch is found at launch, at "
        "most 24"
    )


def test_a_lower_bound_is_the_plans_micro_batch() -> None:
    plan = auto().at_most(8).plan(seq_len=16, ranks=2)
    assert (plan.micro_batch_size, plan.micro_batches) == (8, 3)


def test_a_share_that_is_not_whole_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="the nearest that fit: 45 and 50"):
        auto().plan(seq_len=16, ranks=5)


@pytest.mark.parametrize(
    "values",
    [
        {"tokens_per_step": 768},
        {"samples_per_step": None},
        {"memory_limit_gib": 0},
        {"memory_margin": 1.0},
        {"max_micro_batch_size": 0},
        {"micro_batch_size": 4},
    ],
)
def test_bad_values_do_not_validate(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        auto(**values)
