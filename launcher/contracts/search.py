"""The search for the largest micro-batch that fits into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from launcher.contracts.options import AccumulationOption


class MicroBatchSearch(Protocol):
    """Search for a micro-batch size, which the launcher does before the run."""

    @property
    def memory_limit_gib(self) -> float | None:
        """Memory that each rank may use, in GiB; None: what is free when the run starts."""

    @property
    def memory_margin(self) -> float:
        """Share of that memory to leave free, from 0 to below 1."""

    def candidates(self, *, seq_len: int, ranks: int) -> Sequence[int]:
        """Return the micro-batch sizes to try, the smallest first; always 1 at least.

        Args:
            seq_len: Tokens in one sample.
            ranks: Ranks that read different data.

        Raises:
            ValueError: The ranks cannot share the global batch evenly.
        """

    def at_most(self, micro_batch_size: int) -> AccumulationOption:
        """Return the option of a trial: still a search, with this size as its upper bound."""

    def decided(self, micro_batch_size: int) -> AccumulationOption:
        """Return the option of the run that follows, with the size given and nothing to search."""
