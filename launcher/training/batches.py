"""Samples of each optimizer step: a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import BatchPlan, Samples, Window


class Windows(Iterator[Window]):
    """This rank's windows, from a position on.

    Args:
        samples: The training set.
        plan: Division of a window into ranks and micro-batches.
        seed: Seed of the order.
        data_rank: The share of each window that this rank reads.
        start: Samples already seen.
        stop: Samples to see in total; the last window may be short. None for no end.
    """

    # One endless stream, epoch after epoch, of which a window is the next part. So the position in
    # the data is one number that a checkpoint can hold, no epoch loses its last samples, and any
    # number of ranks sees the same samples in the same step.

    def __init__(
        self,
        samples: Samples,
        plan: BatchPlan,
        *,
        seed: int,
        data_rank: int,
        start: int,
        stop: int | None,
    ) -> None:
        self._samples = samples
        self._plan = plan
        self._seed = seed
        self._data_rank = data_rank
        self._position = start
        self._stop = stop
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> Window:
        end = self._position + self._plan.samples_per_step
        if self._stop is not None:
            end = min(end, self._stop)
        if end <= self._position:
            raise StopIteration
        indices = self._stream(self._position, end)
        draw = _mixed(self._seed, self._position)
        self._position = end
        dealt = deal(
            indices,
            size=self._plan.micro_batch_size,
            data_ranks=self._plan.ranks,
            data_rank=self._data_rank,
        )
        return Window(
            micro_batches=[self._samples.micro_batch(each, draw) for each in dealt],
            num_samples=len(indices),
            num_targets=self._samples.num_targets(indices),
        )

    def _stream(self, start: int, end: int) -> list[int]:
        """Return the samples from position `start` up to `end`, which may cross epochs."""
        indices: list[int] = []
        length = len(self._samples)
        while start < end:
            epoch, offset = divmod(start, length)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self._seed, epoch, length)
            part: list[int] = self._order[offset : offset + end - start].tolist()
            indices += part
            start += len(part)
        return indices


def deal(
    indices: Sequence[int], *, size: int, data_ranks: int, data_rank: int
) -> list[Sequence[int]]:
    """Return one data rank's micro-batches of the samples; every rank gets as many, maybe empty."""
    # As many on every rank, because each forward and backward pass may have collectives: a rank
    # with fewer would leave the others waiting.
    count = -(-len(indices) // (size * data_ranks))
    starts = ((turn * data_ranks + data_rank) * size for turn in range(count))
    return [indices[start : start + size] for start in starts]


def permutation(seed: int, epoch: int, length: int) -> Tensor:
    """Return the order of one epoch. Shape (length,), int64."""
    # A generator of its own: with the global one the order would depend on dropout, and could not
    # be repeated on resume without all epochs before.
    generator = torch.Generator()
    generator.manual_seed(_mixed(seed, epoch))
    return torch.randperm(length, generator=generator)


def _mixed(seed: int, number: int) -> int:
    # An odd multiplier keeps the pairs apart; torch takes seeds of 64 bits.
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63
