"""Orders and divisions that several kinds use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from launcher.contracts import BatchingOption, BatchPlan, split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Keeps the seeds of an epoch's second permutation apart from those of the next epochs.
_SECOND = 0x5851F42D4C957F2D


class SortedWindows(BatchingOption):
    """Base class: the samples of a window are dealt out by length."""

    # Samples of similar length in a micro-batch, and in those that the ranks compute together.
    @override
    def micro_batches(
        self, indices: Sequence[int], lengths: npt.NDArray[np.int64], plan: BatchPlan
    ) -> list[Sequence[int]]:
        return split(longest_first(indices, lengths).tolist(), plan.micro_batch_size)


def permutation(seed: int, count: int) -> npt.NDArray[np.int64]:
    """Return a random order of `count` indices. Shape (count,)."""
    import torch

    # A generator of its own: with the global one the order would depend on dropout, and could not
    # be repeated on resume without all epochs before.
    generator = torch.Generator()
    generator.manual_seed(seed)
    found: npt.NDArray[np.int64] = torch.randperm(count, generator=generator).numpy()
    return found


def longest_first(
    indices: Sequence[int] | npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Sort samples by length; those of equal length keep their order."""
    import numpy as np

    chosen = np.asarray(indices, dtype=np.int64)
    found: npt.NDArray[np.int64] = chosen[np.argsort(-lengths[chosen], kind="stable")]
    return found


def grouped(
    lengths: npt.NDArray[np.int64], *, steps: int, samples_per_step: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return a random order in which the samples of a window have similar lengths.

    Args:
        lengths: Tokens of every sample. Shape (N,).
        steps: Windows whose samples are sorted together.
        samples_per_step: Samples of a window.
        seed: Seed of this epoch.
    """
    import numpy as np

    order = permutation(seed, len(lengths))
    if steps == 1:
        return order
    size = steps * samples_per_step
    seed = (seed ^ _SECOND) % 2**62
    for start in range(0, len(order), size):
        part = longest_first(order[start : start + size], lengths)
        # A short window stays the last one: windows after it would begin within others.
        whole = len(part) - len(part) % samples_per_step
        windows = part[:whole].reshape(-1, samples_per_step)
        turns = permutation(seed + start, len(windows))
        order[start : start + size] = np.concatenate([windows[turns].ravel(), part[whole:]])
    return order
