"""Accumulation by count: the global batch follows from it."""

from typing import Literal, Self

from pydantic import Field
from typing_extensions import override

from launcher.accumulation._fixed import FixedMicroBatch, plan_for
from launcher.contracts import BatchPlan


class Steps(FixedMicroBatch):
    """A fixed number of micro-batches per step on every rank; more ranks make a larger batch."""

    kind: Literal["steps"]
    steps: int = Field(gt=0, le=10**9)
    """Micro-batches that each rank accumulates for one optimizer step."""

    @override
    def resized(self, plan: BatchPlan, ranks: int) -> Self:
        same = plan_for(
            plan.samples_per_step,
            name="the global batch",
            micro_batch_size=self.micro_batch_size,
            ranks=ranks,
            seq_len=plan.seq_len,
            unit=1,
        )
        values = {"steps": same.micro_batches, "micro_batch_size": same.micro_batch_size}
        return self.model_copy(update=values)

    @override
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        return BatchPlan(self.micro_batch_size, self.steps, ranks, seq_len)
