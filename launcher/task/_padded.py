"""Samples of different lengths, padded to the longest of their micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor
from typing_extensions import override

from launcher.contracts import MicroBatch, Records, Samples
from launcher.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths in one array.

    Attributes:
        values: All rows, one after the other. Shape (T,).
        ends: End of each row. Shape (N,), int64.
        pad: Value behind the end of a row.
    """

    values: Array
    ends: npt.NDArray[np.int64]
    pad: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], pad: int) -> Ragged:
        """Join rows."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        values = np.fromiter((v for row in rows for v in row), dtype=np.int32, count=lengths.sum())
        return cls(values, np.cumsum(lengths), pad)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Length of each row. Shape (N,)."""
        return np.diff(self.ends, prepend=0)

    def row(self, index: int) -> Array:
        """Return a row. Shape (length,)."""
        return self.values[self.ends[index - 1] if index else 0 : self.ends[index]]

    def padded(self, indices: Sequence[int]) -> Tensor:
        """Return rows, filled up to the longest. Shape (len(indices), width), int64."""
        rows = [self.row(index) for index in indices]
        found = np.full((len(rows), max(map(len, rows))), self.pad, dtype=np.int64)
        for place, row in enumerate(rows):
            found[place, : len(row)] = row
        return torch.from_numpy(found)


class PaddedSamples(Samples):
    """Encoded records.

    Args:
        records: What was encoded; sources of samples are described by it.
        ragged: `input_ids`, and other inputs with a value per token.
        values: Inputs with one value (or a row of values) per sample. Shape (N, …).
        padding: Values of those inputs in a row without targets.
        targets: Number of targets of each sample. Shape (N,), int64.
        sources: The record of each sample; None if each record is one. Shape (N,), int64.
    """

    def __init__(
        self,
        records: Records,
        ragged: Mapping[str, Ragged],
        *,
        values: Mapping[str, Array],
        padding: Mapping[str, Tensor],
        targets: npt.NDArray[np.int64],
        sources: npt.NDArray[np.int64] | None = None,
    ) -> None:
        if not len(targets):
            raise DataError("there is no record to train on or to evaluate")
        self._records, self._ragged, self._values = records, ragged, values
        self._padding, self._targets, self._sources = padding, targets, sources
        self.lengths = ragged["input_ids"].lengths
        hashed = xxhash.xxh3_128()
        for name, rows in sorted(ragged.items()):
            hashed.update(f"{name} {rows.pad}".encode())
            hashed.update(np.ascontiguousarray(rows.values).data)
            hashed.update(rows.ends.data)
        for name, array in sorted(values.items()):
            hashed.update(f"{name} {array.shape}".encode())
            hashed.update(np.ascontiguousarray(array).data)
        self.fingerprint = hashed.hexdigest()

    @override
    def __len__(self) -> int:
        return len(self._targets)

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return int(self._targets[np.asarray(indices, dtype=np.intp)].sum())

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        del draw
        if not indices:
            # A row of one token, so that nothing is divided by a length of 0.
            inputs = {name: torch.full((1, 1), rows.pad) for name, rows in self._ragged.items()}
            last = self._ragged["input_ids"].row(0)[-1:].astype(np.int64)
            inputs["input_ids"] = torch.from_numpy(last)[None]
            inputs["attention_mask"] = torch.ones((1, 1), dtype=torch.int64)
            return MicroBatch({**inputs, **self._padding}, 0, ())
        inputs = {name: rows.padded(indices) for name, rows in self._ragged.items()}
        chosen = np.asarray(indices)
        width = torch.arange(inputs["input_ids"].shape[1])
        lengths = torch.from_numpy(self.lengths[chosen])
        inputs["attention_mask"] = (width < lengths[:, None]).long()
        for name, array in self._values.items():
            inputs[name] = torch.from_numpy(array[chosen])
        return MicroBatch(inputs, self.num_targets(indices), indices)

    @override
    def describe(self, index: int) -> str:
        source = index if self._sources is None else int(self._sources[index])
        return self._records.describe(source)
