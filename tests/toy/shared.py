"""Records and metrics that several toy kinds and tests use; loads without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from launcher.contracts import Metrics, Records

if TYPE_CHECKING:
    from torch import Tensor


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


class Rows(Records):
    """Records as given."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows
        self.columns = list(rows[0])
        self.fingerprint = repr(rows)

    @override
    def __len__(self) -> int:
        return len(self.rows)

    @override
    def record(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]

    @override
    def describe(self, index: int) -> str:
        return f"rows:{index + 1}"


class Numbered(Records):
    """Made-up records, each a function of its number."""

    columns: Sequence[str] = ("text",)
    name = "made-up/"

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers
        self.fingerprint = f"{self.name}{numbers}"

    @override
    def __len__(self) -> int:
        return len(self.numbers)

    @override
    def describe(self, index: int) -> str:
        return f"{self.name}{self.numbers[index]}"


class MeanLoss(Metrics):
    """Mean loss per target."""

    names = ("eval_loss",)

    def __init__(self) -> None:
        self.loss, self.num_targets = 0.0, 0

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        self.loss = math.fsum([self.loss, *predictions["loss"].tolist()])
        self.num_targets += int(predictions["num_targets"].sum())

    @override
    def compute(self) -> dict[str, float]:
        return {"eval_loss": self.loss / self.num_targets}
