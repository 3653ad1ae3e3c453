"""Accumulation by count: the global batch follows from it."""

from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.accumulation._fixed import FixedMicroBatch
from launcher.contracts import BatchPlan


class Steps(FixedMicroBatch):
    """A fixed number of micro-batches per step on every rank; more ranks make a larger batch."""

    kind: Literal["steps"]
    steps: int = Field(gt=0, le=10**9)
    """Micro-batches that each rank accumulates for one optimizer step."""

    @override
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        return BatchPlan(self.micro_batch_size, self.steps, ranks, seq_len)
