"""Base class of the group `batching`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from launcher.contracts.options import Option

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from launcher.contracts.data import BatchPlan, Samples
    from launcher.contracts.task import Task


class BatchingOption(Option):
    """Order of the samples, and division of each window into micro-batches."""

    # Both are pure: a resumed run, and any number of ranks, must see the same windows.

    def samples(
        self, samples: Samples, task: Task, *, seq_len: int, network: Callable[[], nn.Module]
    ) -> Samples:
        """Return what windows are made of: the training samples, or rows of several.

        Args:
            samples: The training samples.
            task: The task that encoded them.
            seq_len: Most tokens of a sample.
            network: Builds a small network of the same architecture on the CPU, for checks.

        Raises:
            ConfigError: Task or network do not support it.
        """
        del task, seq_len, network
        return samples

    @abstractmethod
    def order(
        self, lengths: npt.NDArray[np.int64], *, samples_per_step: int, seed: int
    ) -> npt.NDArray[np.int64]:
        """Return the order of the samples in one epoch: a permutation of their indices.

        Args:
            lengths: Tokens of every sample. Shape (N,).
            samples_per_step: Samples of a window. Windows begin at multiples of it in the first
                epoch; later ones are shifted, unless it divides N.
            seed: Seed of this epoch.
        """

    def micro_batches(
        self, indices: Sequence[int], lengths: npt.NDArray[np.int64], plan: BatchPlan
    ) -> list[Sequence[int]]:
        """Divide a window into micro-batches of all data ranks.

        Args:
            indices: The samples of the window, in order.
            lengths: Tokens of every sample of the set. Shape (N,).
            plan: Sizes; the window may be a short one.

        Returns:
            Micro-batches in an order in which data rank r takes every `plan.ranks`-th one, from the
            r-th on. A rank that gets one less than others computes an empty one.
        """
        del lengths
        return split(indices, plan.micro_batch_size)


def split(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut a sequence into parts of `size`; the last one may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
