"""Samples of each optimizer step: a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from launcher.contracts import BatchingOption, BatchPlan, Samples, Window


class Windows(Iterator[Window]):
    """This rank's windows, from a position on.

    Args:
        samples: The training set.
        plan: Division of a window into ranks and micro-batches.
        batching: Order of the samples, and what is in a micro-batch.
        seed: Seed of the order.
        data_rank: The share of each window that this rank reads.
        start: Samples already seen.
        stop: Samples to see in total; the last window may be short. None for no end.

    Attributes:
        pads: True if the samples have different lengths.
        padding: Share of padding in the last window, over all ranks; None if nothing is padded.
    """

    # One endless stream, epoch after epoch, of which a window is the next part. So the position in
    # the data is one number that a checkpoint can hold, no epoch loses its last samples, and any
    # number of ranks sees the same samples in the same step.

    def __init__(
        self,
        samples: Samples,
        plan: BatchPlan,
        batching: BatchingOption,
        *,
        seed: int,
        data_rank: int,
        start: int,
        stop: int | None,
    ) -> None:
        self._samples = samples
        self._plan = plan
        self._batching = batching
        self.pads = bool((samples.lengths != samples.lengths[0]).any())
        self.padding: float | None = None
        self._seed = seed
        self._data_rank = data_rank
        self._position = start
        self._stop = stop
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

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
        draw = mixed(self._seed, self._position)
        self._position = end
        every = self._batching.micro_batches(indices, self._samples.lengths, self._plan)
        self.padding = padding_share(every, self._samples.lengths) if self.pads else None
        dealt = deal(every, data_ranks=self._plan.ranks, data_rank=self._data_rank)
        return Window(
            micro_batches=[self._samples.micro_batch(each, draw) for each in dealt],
            num_samples=len(indices),
            num_targets=self._samples.num_targets(indices),
        )

    def expected_padding(self, steps: int) -> float:
        """Return the mean share of padding over the first steps of the run."""
        size, shares = self._plan.samples_per_step, []
        for step in range(steps):
            indices = self._stream(step * size, (step + 1) * size)
            every = self._batching.micro_batches(indices, self._samples.lengths, self._plan)
            shares.append(padding_share(every, self._samples.lengths))
        return sum(shares) / max(1, len(shares))

    def _stream(self, start: int, end: int) -> list[int]:
        """Return the samples from position `start` up to `end`, which may cross epochs."""
        indices: list[int] = []
        length = len(self._samples)
        while start < end:
            epoch, offset = divmod(start, length)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = self._batching.order(
                    self._samples.lengths,
                    samples_per_step=self._plan.samples_per_step,
                    seed=mixed(self._seed, epoch),
                )
            part: list[int] = self._order[offset : offset + end - start].tolist()
            indices += part
            start += len(part)
        return indices


def deal(
    micro_batches: Sequence[Sequence[int]], *, data_ranks: int, data_rank: int
) -> list[Sequence[int]]:
    """Return one data rank's micro-batches; every rank gets as many, maybe an empty one."""
    # As many on every rank, because each forward and backward pass may have collectives: a rank
    # with fewer would leave the others waiting.
    count = -(-len(micro_batches) // data_ranks)
    own = list(micro_batches[data_rank::data_ranks])
    return own + [()] * (count - len(own))


def padding_share(micro_batches: Sequence[Sequence[int]], lengths: npt.NDArray[np.int64]) -> float:
    """Return the share of padding in micro-batches that are padded to their longest sample."""
    each = [lengths[np.asarray(indices, dtype=np.intp)] for indices in micro_batches]
    places = sum(len(own) * int(own.max()) for own in each)
    return 1 - sum(int(own.sum()) for own in each) / places


def mixed(seed: int, number: int) -> int:
    """Return one seed of 63 bits for a pair of numbers."""
    # An odd multiplier keeps the pairs apart; torch takes seeds of 64 bits.
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63
