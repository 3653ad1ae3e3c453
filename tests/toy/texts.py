"""Texts in memory as records."""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import override

from launcher.contracts import Records


class Texts(Records):
    """Each text is one record; the first is called `0.txt`."""

    columns = ("text",)

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.fingerprint = repr(texts)

    @override
    def __len__(self) -> int:
        return len(self.texts)

    @override
    def record(self, index: int) -> Mapping[str, str]:
        return {"text": self.texts[index]}

    @override
    def describe(self, index: int) -> str:
        return f"{index}.txt"
