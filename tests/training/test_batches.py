"""The order of the data: a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from launcher.contracts import BatchPlan, MicroBatch
from launcher.training.batches import Windows, mixed
from tests.tasks import RANDOM


class Numbers:
    """Sample i is the number i, with i % 3 + 1 targets."""

    fingerprint = "numbers"

    def __init__(self, length: int) -> None:
        self.length = length
        self.lengths = np.arange(length) % 3 + 1

    def __len__(self) -> int:
        return self.length

    def num_targets(self, indices: Sequence[int]) -> int:
        return sum(i % 3 + 1 for i in indices)

    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        return MicroBatch({"x": torch.tensor(indices)}, self.num_targets(indices), indices)

    def describe(self, index: int) -> str:
        return f"number {index}"


def windows(
    *, length: int = 20, micro: int = 2, count: int = 2, ranks: int = 1, rank: int = 0,
    start: int = 0, stop: int | None = None, seed: int = 0,
) -> Windows:  # fmt: skip
    plan = BatchPlan(micro_batch_size=micro, micro_batches=count, ranks=ranks, seq_len=1)
    return Windows(Numbers(length), plan, RANDOM, seed=seed, data_rank=rank, start=start, stop=stop)


def seen(source: Windows, steps: int) -> list[list[int]]:
    return [[i for m in next(source).micro_batches for i in m.indices] for _ in range(steps)]


def test_every_epoch_sees_every_sample_once_in_another_order() -> None:
    flat = [i for step in seen(windows(length=18), 9) for i in step]
    assert sorted(flat[:18]) == sorted(flat[18:36]) == list(range(18))
    assert flat[:18] != flat[18:36]


def test_resuming_at_any_position_goes_on_in_the_same_stream() -> None:
    whole = seen(windows(), 12)
    for step in range(12):
        assert seen(windows(start=4 * step), 12 - step) == whole[step:]


@pytest.mark.parametrize(
    ("micro", "count", "ranks"), [(1, 8, 1), (2, 4, 1), (8, 1, 1), (2, 2, 2), (1, 2, 4)]
)
def test_every_cut_of_a_window_holds_the_same_samples(micro: int, count: int, ranks: int) -> None:
    whole = seen(windows(micro=8, count=1), 6)
    shares = [seen(windows(micro=micro, count=count, ranks=ranks, rank=r), 6) for r in range(ranks)]
    for step in range(6):
        assert sorted(i for share in shares for i in share[step]) == sorted(whole[step])


def test_targets_are_counted_over_all_ranks() -> None:
    whole = next(windows(micro=8, count=1))
    for rank in range(2):
        share = next(windows(micro=2, count=2, ranks=2, rank=rank))
        assert (share.num_samples, share.num_targets) == (8, whole.num_targets)
        assert sum(m.num_targets for m in share.micro_batches) < whole.num_targets


def test_the_stream_ends_with_a_short_window() -> None:
    source = windows(length=10, stop=10)
    assert [len(step) for step in seen(source, 3)] == [4, 4, 2]
    with pytest.raises(StopIteration):
        next(source)


def order(seed: int, epoch: int, count: int) -> list[int]:
    lengths = np.ones(count, dtype=np.int64)
    found = RANDOM.order(lengths, samples_per_step=4, seed=mixed(seed, epoch))
    return [int(index) for index in found]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    state = torch.get_rng_state()
    orders = {(s, e): tuple(order(s, e, 50)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert torch.equal(torch.get_rng_state(), state)
    assert tuple(order(1, 2, 50)) == orders[1, 2]


def test_the_order_of_a_known_seed_is_what_it_was() -> None:
    # A resumed run relies on it: a new value here breaks every unfinished run.
    assert order(0, 0, 8) == [4, 0, 7, 3, 2, 5, 1, 6]
    assert order(7, 3, 8) == [0, 3, 4, 5, 1, 7, 6, 2]
