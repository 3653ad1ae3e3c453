"""A global batch in tokens: the accumulation follows from it."""

from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.accumulation._fixed import FixedMicroBatch, plan_for
from launcher.contracts import BatchPlan


class Tokens(FixedMicroBatch):
    """A fixed global batch in tokens, whatever the number of ranks and the length of a sample."""

    kind: Literal["tokens"]
    tokens_per_step: int = Field(gt=0, le=10**12)
    """Global batch: tokens in one optimizer step over all ranks, every sample counted with the
    task's full seq_len; a multiple of micro_batch_size × ranks × seq_len."""

    @override
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        return plan_for(
            self.tokens_per_step,
            name="tokens_per_step",
            micro_batch_size=self.micro_batch_size,
            ranks=ranks,
            seq_len=seq_len,
            unit=seq_len,
        )
