"""The harness of ranks itself: results, errors, time limits."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankError, end_of_ranks, run_on_ranks


def total(value: float) -> float:
    tensor = torch.tensor([value * (dist.get_rank() + 1)])
    dist.all_reduce(tensor)
    return tensor.item()


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError(f"planted on rank {rank}")
    dist.barrier()


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)


def hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(60)


def matmul() -> float:
    torch.set_num_threads(2)
    return (torch.ones(300, 300) @ torch.ones(300, 300)).sum().item()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_returns_its_result(ranks: int) -> None:
    expected = 2.5 * ranks * (ranks + 1) / 2
    assert run_on_ranks(total, 2.5, ranks=ranks) == [expected] * ranks


def test_the_failing_rank_is_named_with_its_own_traceback() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2.*planted on rank 1"):
        run_on_ranks(fail_on, 1)


def test_a_killed_rank_is_reported() -> None:
    assert end_of_ranks(die_on, 0)[0].status == -signal.SIGKILL


def test_a_rank_that_hangs_shows_where() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1.*hang_on"):
        run_on_ranks(hang_on, 1, timeout_s=2)


def test_ranks_may_use_several_threads() -> None:
    assert run_on_ranks(matmul) == [300.0**3] * 2
