"""The device that the ranks of a machine use."""

from __future__ import annotations

import os

import pytest

from launcher.errors import LaunchError
from launcher.launch._world import choose_device, share_of_cores


@pytest.mark.parametrize(
    ("wanted", "ranks", "cuda", "chosen"),
    [
        ("auto", 1, 0, "cpu"),
        ("auto", 3, 0, "cpu"),
        ("auto", 1, 1, "cuda"),
        ("auto", 2, 8, "cuda"),
        ("cpu", 3, 1, "cpu"),
        ("cuda", 2, 2, "cuda"),
    ],
)
def test_all_ranks_use_the_same_kind(wanted: str, ranks: int, cuda: int, chosen: str) -> None:
    assert choose_device(wanted, ranks, {"cuda": cuda, "mps": 0, "cpu": None}) == chosen


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_fewer_devices_than_ranks_are_refused(wanted: str) -> None:
    with pytest.raises(LaunchError, match=r"2 ranks .* need as many cuda devices, .* sees 1"):
        choose_device(wanted, 2, {"cuda": 1, "mps": 0, "cpu": None})


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(LaunchError, match="no such device; available here: mps, cpu"):
        choose_device("cuda", 1, {"cuda": 0, "mps": 1, "cpu": None})


def test_ranks_share_the_cores_unless_a_number_is_set() -> None:
    cores = len(os.sched_getaffinity(0))
    assert share_of_cores({}) is None
    assert share_of_cores({"LOCAL_WORLD_SIZE": "1"}) is None
    assert share_of_cores({"LOCAL_WORLD_SIZE": "2"}) == max(1, cores // 2)
    assert share_of_cores({"LOCAL_WORLD_SIZE": "999"}) == 1
    assert share_of_cores({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "7"}) is None
