"""Sums of small numbers, written out."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from typing_extensions import override

from launcher.contracts import DataOption, DataSplits, Records


class Sums(DataOption):
    """Texts such as `3+4=7;`, each a record."""

    up_to: int = Field(gt=1)
    """Numbers below this are added."""

    @override
    def build(self) -> DataSplits:
        pairs = [(a, b) for a in range(self.up_to) for b in range(self.up_to)]
        held_out = pairs[::5]
        return DataSplits(_Sums([pair for pair in pairs if pair not in held_out]), _Sums(held_out))


class _Sums(Records):
    columns = ("text",)

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self._pairs = pairs
        self.fingerprint = str(pairs)

    @override
    def __len__(self) -> int:
        return len(self._pairs)

    @override
    def record(self, index: int) -> Mapping[str, str]:
        first, second = self._pairs[index]
        return {"text": f"{first}+{second}={first + second};"}

    @override
    def describe(self, index: int) -> str:
        return f"sum {index}"
