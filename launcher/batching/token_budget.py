"""As many samples in a micro-batch as fit a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.batching._orders import grouped, longest_first
from launcher.contracts import BatchingOption, BatchPlan, ConfigView
from launcher.errors import Problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class TokenBudget(BatchingOption):
    """As many samples in a micro-batch as fit a number of tokens, padding included.

    The window keeps its number of samples, and so its gradient; the number of micro-batches differs
    by window. `accumulation.micro_batch_size` remains that of evaluations.
    """

    kind: Literal["token_budget"]
    tokens_per_micro_batch: int = Field(gt=0, le=2**31)
    """Most tokens of a micro-batch: samples × the length of the longest one."""
    mega_batch_steps: int = Field(gt=0, le=100_000)
    """Windows whose samples are sorted by length together; see `batching=length_grouped`."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.tokens_per_micro_batch < config.task.seq_len:
            yield Problem(
                "batching.tokens_per_micro_batch",
                f"must be at least task.seq_len={config.task.seq_len}, the length of one sample, "
                f"but is {self.tokens_per_micro_batch}",
            )
        if config.accumulation.search is not None:
            yield Problem(
                "accumulation.kind",
                "cannot search for a micro-batch size with batching=token_budget, whose "
                "micro-batches have different sizes; set batching.tokens_per_micro_batch",
            )

    @override
    def order(
        self, lengths: npt.NDArray[np.int64], *, samples_per_step: int, seed: int
    ) -> npt.NDArray[np.int64]:
        return grouped(
            lengths, steps=self.mega_batch_steps, samples_per_step=samples_per_step, seed=seed
        )

    @override
    def micro_batches(
        self, indices: Sequence[int], lengths: npt.NDArray[np.int64], plan: BatchPlan
    ) -> list[Sequence[int]]:
        ordered = longest_first(indices, lengths).tolist()
        found: list[Sequence[int]] = []
        start = 0
        while start < len(ordered):
            # Longest first, so that the first sample of a micro-batch is as long as its padding.
            count = max(1, self.tokens_per_micro_batch // max(1, int(lengths[ordered[start]])))
            found.append(ordered[start : start + count])
            start += count
        # Halves instead of an empty micro-batch, for which the other ranks would wait.
        while len(found) % plan.ranks and any(len(each) > 1 for each in found):
            place = max(range(len(found)), key=lambda each: len(found[each]))
            whole = found[place]
            half = -(-len(whole) // 2)
            found[place : place + 1] = [whole[:half], whole[half:]]
        return found
