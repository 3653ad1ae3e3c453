"""A global batch in samples: the accumulation follows from it."""

from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.accumulation._fixed import FixedMicroBatch, plan_for
from launcher.contracts import BatchPlan


class Samples(FixedMicroBatch):
    """A fixed global batch in samples, whatever the number of ranks."""

    kind: Literal["samples"]
    samples_per_step: int = Field(gt=0, le=10**9)
    """Global batch: samples in one optimizer step over all ranks; a multiple of micro_batch_size ×
    ranks."""

    @override
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        return plan_for(
            self.samples_per_step,
            name="samples_per_step",
            micro_batch_size=self.micro_batch_size,
            ranks=ranks,
            seq_len=seq_len,
            unit=1,
        )
