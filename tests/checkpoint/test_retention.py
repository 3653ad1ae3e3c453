from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.checkpoint.conftest import Bench


def steps(bench: Bench) -> list[int]:
    return [int(name.removeprefix("step-")) for name in bench.names()]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(bench: Bench, keep: int) -> None:
    store = bench.store(keep=keep)
    for step in range(1, 6):
        store.save(bench.snapshot(step))
        assert steps(bench) == list(range(1, step + 1))[-keep:]
    assert bench.same(bench.load(), bench.snapshot(5))


def test_a_new_process_goes_on_counting(bench: Bench) -> None:
    bench.save(1, 2)
    bench.save(3, keep=2)
    assert steps(bench) == [2, 3]


def test_the_order_is_the_steps_not_the_clocks(bench: Bench) -> None:
    bench.save(1, 2, 3)
    for age, step in enumerate((1, 2, 3)):
        os.utime(bench.step(step), (10**9 - age, 10**9 - age))
    assert bench.same(bench.load(), bench.snapshot(3))
    bench.save(4, keep=2)
    assert steps(bench) == [3, 4]


def test_a_damaged_one_does_not_count(bench: Bench) -> None:
    bench.save(1, 2, 3)
    (bench.step(3) / "config.json").write_text("{}")
    bench.save(4, keep=2)
    assert bench.names() == ["step-00000002", "step-00000003.corrupt", "step-00000004"]


def test_the_last_verified_one_outlives_any_number_of_failures(bench: Bench) -> None:
    bench.save(1)
    for step in (2, 3, 4):
        store = bench.store(keep=1)
        store.save(bench.snapshot(step))
        (bench.step(step) / "config.json").write_text("{}")
        bench.save(step + 10, keep=1)
        assert steps(bench)[-1] == step + 10
        assert bench.same(bench.load(), bench.snapshot(step + 10))


def test_what_is_not_ours_is_left_alone(bench: Bench) -> None:
    bench.save(1, 2, 3)
    bench.reseal(1, run_id="run-2")
    (bench.step(2) / "manifest.json").write_text("unreadable")
    bench.save(4, 5, keep=1)
    assert steps(bench) == [1, 2, 5]
