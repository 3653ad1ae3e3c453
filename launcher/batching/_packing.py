"""Pack samples into rows of a fixed length, best fit decreasing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def best_fit_decreasing(lengths: Ints, capacity: int) -> Ints:
    """Return the row of every sample: each goes, longest first, to the fullest row that has space.

    Args:
        lengths: Tokens of every sample, none above `capacity`. Shape (N,).
        capacity: Tokens of a row.

    Returns:
        Numbers of rows, from 0. Shape (N,).
    """
    # On the histogram: samples of one length, and rows with the same space left, are dealt with
    # together. A million samples take a fraction of a second.
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    row_of = np.empty(len(lengths), dtype=np.int64)
    spaces = _Spaces(capacity)
    place = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = place + count
        while place < end:
            space = spaces.smallest(max(size, 1))
            each = space // max(size, 1)
            rows = spaces.take(space, -(-(end - place) // each))
            # Every row gets `each` samples, the last one maybe fewer.
            filled = np.repeat(rows, each)[: end - place]
            row_of[order[place : place + len(filled)]] = filled
            place += len(filled)
            last = len(filled) - each * (len(rows) - 1)
            spaces.put(space - each * size, rows[:-1])
            spaces.put(space - last * size, rows[-1:])
    return row_of


class _Spaces:
    """Rows by the space that is left in them; new ones come as they are needed."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: list[list[Ints]] = [[] for _ in range(capacity + 1)]
        self._exists = np.zeros(capacity + 1, dtype=bool)
        self._count = 0

    def smallest(self, size: int) -> int:
        """Return the smallest space of at least `size`; that of a new row if no row has it."""
        found = int(self._exists[size:].argmax()) + size
        return found if self._exists[found] else self._capacity

    def take(self, space: int, count: int) -> Ints:
        """Take up to `count` rows with a space; at least one."""
        if not self._exists[space]:
            self._count += count
            return np.arange(self._count - count, self._count)
        rows = self._rows[space].pop()
        if len(rows) > count:
            self._rows[space].append(rows[count:])
        self._exists[space] = bool(self._rows[space])
        return rows[:count]

    def put(self, space: int, rows: Ints) -> None:
        """Put rows back, with the space that they have now."""
        if len(rows):
            self._rows[space].append(rows)
            self._exists[space] = True


def members(row_of: Ints) -> tuple[Ints, Ints]:
    """Return the samples row by row, each row's in order, and the end of each row among them."""
    order = np.argsort(row_of, kind="stable")
    return order, np.cumsum(np.bincount(row_of))


def positions(lengths: Sequence[int], width: int) -> Ints:
    """Return position ids that restart at each sample, and at the padding. Shape (width,)."""
    parts = [*lengths, width - sum(lengths)]
    return np.concatenate([np.arange(part) for part in parts])
