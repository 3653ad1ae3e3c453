"""Baselines are computed once in a run."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from typing_extensions import override

from launcher.contracts import Records
from launcher.training.parts import references_of
from tests.tasks import LogitsTask
from tests.toy.shared import Texts


class Counting(LogitsTask):
    calls = 0

    @override
    def references(self, records: Records) -> Mapping[str, float]:
        self.calls += 1
        return {"records": float(len(records))}


def test_a_resumed_run_reads_what_the_first_start_computed(tmp_path: Path) -> None:
    task, path = Counting("x", "x"), tmp_path / "references.json"
    records = Texts("text", "more")
    first = references_of(task, records, path)
    assert references_of(task, records, path) == first == {"records": 2.0}
    assert task.calls == 1


def test_the_other_ranks_wait_for_rank_0_without_a_time_limit(tmp_path: Path) -> None:
    task, path = Counting("x", "x"), tmp_path / "references.json"
    records = Texts("text", "more")
    references_of(task, Texts("text"), path)  # of other records: not what they wait for
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(references_of, task, records, path, rank=1)
        assert not wait([waiting], timeout=0.2).done
        first = references_of(task, records, path)
        assert waiting.result(timeout=60) == first
    assert task.calls == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fingerprint": 1}'])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: str) -> None:
    task, path = Counting("x", "x"), tmp_path / "references.json"
    path.write_text(damage)
    assert references_of(task, Texts("text"), path) == {"records": 1.0}
    assert references_of(task, Texts("text"), path) == {"records": 1.0}
    assert task.calls == 1


def test_other_records_have_other_baselines(tmp_path: Path) -> None:
    task, path = Counting("x", "x"), tmp_path / "references.json"
    references_of(task, Texts("text"), path)
    changed = Texts("text", "more")
    assert references_of(task, changed, path) == {"records": 2.0}
    assert task.calls == 2
