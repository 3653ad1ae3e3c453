"""Reads of settings are recorded by attribute, and by nothing else."""

from __future__ import annotations

from typing import ClassVar

import pytest

from launcher.contracts import Settings, recorded, unrecorded


class Inner(Settings):
    rate: float
    spare: int


class Outer(Settings):
    read_on_event: ClassVar[frozenset[str]] = frozenset({"late"})

    kind: str
    plain: int
    late: int
    inner: Inner
    several: tuple[Inner, ...]

    def build(self) -> float:
        """Read a field as build code does."""
        return self.inner.rate


INNER = Inner(rate=0.5, spare=1)
LEAVES = ["plain", "late", "inner.rate", "inner.spare", "several.0.rate", "several.0.spare"]


@pytest.fixture
def outer() -> Outer:
    return Outer(kind="o", plain=1, late=2, inner=INNER, several=(Inner(rate=1.0, spare=2),))


def test_a_read_by_attribute_counts(outer: Outer) -> None:
    with recorded(outer) as reads:
        assert reads.leaves == LEAVES
        outer.build()
        assert outer.several[0].spare == 2
    assert reads.unread() == ["plain", "inner.spare", "several.0.rate"]


def test_what_walks_over_all_fields_does_not_count(outer: Outer) -> None:
    with recorded(outer) as reads:
        assert outer.model_dump()["plain"] == 1
        assert '"plain":1' in outer.model_dump_json()
        assert outer == outer.model_copy()
        assert "plain=1" in repr(outer)
        assert hash(outer) == hash(outer.model_copy(deep=True))
    assert reads.unread() == [leaf for leaf in LEAVES if leaf != "late"]


def test_nothing_is_recorded_outside_and_in_checks(outer: Outer) -> None:
    with recorded(outer) as reads, unrecorded():
        outer.build()
    outer.build()
    assert "inner.rate" in reads.unread()


def test_a_copy_counts_as_the_original_apart_from_what_was_changed(outer: Outer) -> None:
    with recorded(outer) as reads:
        copy = outer.model_copy(update={"plain": 3})
        assert (copy.plain, copy.inner.spare) == (3, 1)
    assert "plain" in reads.unread()
    assert "inner.spare" not in reads.unread()


def test_equal_settings_in_another_place_do_not_count(outer: Outer) -> None:
    with recorded(outer) as reads:
        assert outer.model_copy(deep=True).inner.rate == 0.5
        assert Inner(rate=0.5, spare=1).spare == 1
    assert {"inner.rate", "inner.spare"} <= {*reads.unread()}
