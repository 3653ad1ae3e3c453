"""Every kind of batching: pure, complete, and the same gradients from less padding."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from launcher.contracts import BatchingOption, BatchPlan, TrainState
from launcher.run_dir import RunDir
from launcher.training.batches import padding_share
from launcher.training.parts import summary, windows_of
from tests.conftest import Console, toy_words
from tests.contract.witness import option_of, preset, presets
from tests.levers import ALONE, built, tiny, trained

# As of sentences: many short, few long.
LENGTHS: npt.NDArray[np.int64] = (
    np.random.default_rng(0).lognormal(4, 0.8, 1013).clip(4, 512).astype(np.int64)
)
STEP = 24


def option(name: str, **values: object) -> BatchingOption:
    return cast("BatchingOption", option_of("batching", {**preset("batching", name), **values}))


def order(chosen: BatchingOption, seed: int = 1) -> list[int]:
    found = chosen.order(LENGTHS, samples_per_step=STEP, seed=seed)
    return [int(index) for index in found]


def windows(chosen: BatchingOption) -> list[list[int]]:
    indices = order(chosen)
    return [indices[start : start + STEP] for start in range(0, len(indices), STEP)]


def plan(ranks: int = 1) -> BatchPlan:
    return BatchPlan(micro_batch_size=4, micro_batches=STEP // 4 // ranks, ranks=ranks, seq_len=512)


def mean_padding(chosen: BatchingOption) -> float:
    cuts = [chosen.micro_batches(window, LENGTHS, plan()) for window in windows(chosen)]
    return float(np.mean([padding_share(cut, LENGTHS) for cut in cuts]))


@pytest.mark.parametrize("name", presets("batching"))
def test_an_epoch_has_every_sample_once_and_is_repeatable(name: str) -> None:
    chosen = option(name)
    assert sorted(order(chosen)) == list(range(len(LENGTHS)))
    assert order(chosen) == order(chosen)
    assert order(chosen) != order(chosen, seed=2)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", presets("batching"))
def test_a_window_is_divided_without_loss(name: str, ranks: int) -> None:
    chosen = option(name)
    for window in (*windows(chosen)[:5], [7], windows(chosen)[-1]):
        cut = chosen.micro_batches(window, LENGTHS, plan(ranks))
        assert sorted(i for each in cut for i in each) == sorted(window)
        assert all(each for each in cut)


def test_length_grouped_needs_far_less_padding() -> None:
    shares = {steps: option("length_grouped", mega_batch_steps=steps) for steps in (1, 20)}
    random = mean_padding(option("random"))
    assert mean_padding(shares[1]) < 0.6 * random
    assert mean_padding(shares[20]) < 0.15 * random


def test_one_step_of_length_grouped_has_the_samples_of_random() -> None:
    random, grouped = option("random"), option("length_grouped", mega_batch_steps=1)
    assert order(grouped) == order(random)


def test_windows_of_length_grouped_come_in_random_order() -> None:
    means = [LENGTHS[window].mean() for window in windows(option("length_grouped"))[:-1]]
    rises = np.diff(means) > 0
    assert 0.2 < rises.mean() < 0.8


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_token_budget_is_kept_and_no_rank_waits(ranks: int) -> None:
    chosen = option("token_budget", tokens_per_micro_batch=1024)
    sizes = set()
    for window in windows(chosen)[:-1]:
        cut = chosen.micro_batches(window, LENGTHS, plan(ranks))
        assert all(len(each) * LENGTHS[list(each)].max() <= 1024 for each in cut)
        assert len(cut) % ranks == 0
        sizes |= {len(each) for each in cut}
    assert len(sizes) > 3


def test_a_sample_above_the_budget_is_alone() -> None:
    chosen = option("token_budget", tokens_per_micro_batch=8)
    assert chosen.micro_batches([3, 5], LENGTHS, plan()) == [
        [index] for index in sorted([3, 5], key=lambda i: -LENGTHS[i])
    ]


def test_mixed_has_the_same_share_of_long_samples_in_every_window() -> None:
    limit = np.sort(LENGTHS)[-round(0.25 * len(LENGTHS))]
    for window in windows(option("mixed", long_share=0.25))[:-1]:
        assert abs((LENGTHS[window] >= limit).sum() - 0.25 * STEP) <= 1.5


@pytest.mark.parametrize("descending", [False, True])
def test_sorted_is_a_curriculum(descending: bool) -> None:
    lengths = LENGTHS[order(option("sorted", descending=descending))]
    assert (np.diff(lengths) * (-1 if descending else 1) >= 0).all()


UNPACKED = ("task.packing=false", "accumulation.samples_per_step=8")
KINDS = (
    ("batching=length_grouped",),
    ("batching=token_budget", "batching.tokens_per_micro_batch=40"),
)


def test_the_losses_are_those_of_random_order() -> None:
    expected = trained(tiny(*UNPACKED))
    for kind in KINDS:
        found = trained(tiny(*UNPACKED, *kind, "batching.mega_batch_steps=1"))
        np.testing.assert_allclose(found.losses, expected.losses, rtol=2e-6)
        np.testing.assert_allclose(found.norms, expected.norms, rtol=2e-6)


def test_the_share_of_padding_is_in_the_header(tmp_path: Path) -> None:
    shares = []
    for words in ((), *KINDS):
        config = tiny(*UNPACKED, *words)
        parts = built(config)
        windows = windows_of(config, parts, ALONE)
        expected = windows.expected_padding(1)
        next(windows)
        assert windows.padding == expected
        lines = dict(summary(config, RunDir(tmp_path), ALONE, parts, TrainState()))
        assert f"(batching={config.batching.kind})" in lines["padding"]
        shares.append(float(lines["padding"].partition("%")[0]))
        parts.engine.close()
    assert max(shares[1:]) < shares[0]
    parts = built(tiny())
    assert "padding" not in dict(summary(tiny(), RunDir(tmp_path), ALONE, parts, TrainState()))


def test_a_budget_below_one_sample_is_an_error(trainctl: Console) -> None:
    words = toy_words("batching=token_budget", "batching.tokens_per_micro_batch=2")
    _, err = trainctl("check", *words, status=2)
    assert "batching.tokens_per_micro_batch" in err
    assert "the length of one sample" in err
