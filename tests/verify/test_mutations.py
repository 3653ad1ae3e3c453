"""The mutation score of `trainctl verify`; `scripts/verify_mutations.py` prints it."""

from __future__ import annotations

import pytest

from launcher.verify.compare import Difference
from tests.verify import mutations
from tests.verify.mutations import MUTATIONS, SOUND

HANDFUL = (
    "mean of means",
    "no all-reduce",
    "norm times ranks",
    "schedule times ranks",
    "stale moments",
    "decay on norms",
    "another rank's data",
    "adafactor: a shard's statistics",
)


def missed(names: list[str]) -> list[str]:
    runs = [(MUTATIONS[name].changes, name) for name in names]
    references = mutations.references_of([changes for changes, _ in runs])
    found = mutations.judged(runs, references)
    return [n for n, each in zip(names, found, strict=True) if not isinstance(each, Difference)]


def alarms(count: int) -> list[object]:
    runs = [(changes, None) for changes in SOUND[:count]]
    found = mutations.judged(runs, mutations.references_of([changes for changes, _ in runs]))
    return [each for each in found if each is not None]


def test_a_handful_of_defects_is_found() -> None:
    assert not missed(list(HANDFUL))
    assert not alarms(4)


@pytest.mark.slow
def test_the_mutation_score() -> None:
    assert len(MUTATIONS) >= 40
    assert len(missed(list(MUTATIONS))) <= len(MUTATIONS) // 40
    assert len(SOUND) >= 20
    assert not alarms(len(SOUND))
