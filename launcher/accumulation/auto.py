"""The largest micro-batch that fits, searched at launch; the global batch is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.accumulation._fixed import FixedMicroBatch
from launcher.accumulation.samples import Samples
from launcher.accumulation.tokens import Tokens
from launcher.contracts import AccumulationOption, BatchPlan, ConfigView, MicroBatchSearch


@dataclass(frozen=True, slots=True)
class LargestPlan(BatchPlan):
    """The plan with the largest micro-batch of the search."""

    @override
    def __str__(self) -> str:
        return (
            f"{self.samples_per_step:,} samples ({self.tokens_per_step:,} tokens) per step over "
            f"ranks {self.ranks}; the micro-batch is found at launch, at most "
            f"{self.micro_batch_size}"
        )


class Auto(AccumulationOption):
    """The largest micro-batch that fits, found at launch; the global batch stays the same.

    Each candidate is tried by real ranks, on the longest samples. The run itself uses the kind
    `samples` or `tokens` with the overrides in RUN_DIR/decisions.txt, and a resume keeps them.
    """

    kind: Literal["auto"]
    samples_per_step: int | None = Field(gt=0, le=10**9)
    """Global batch: samples in one optimizer step over all ranks; null if tokens_per_step is
    set."""
    tokens_per_step: int | None = Field(gt=0, le=10**12)
    """Global batch in tokens, every sample counted with the task's full seq_len; null if
    samples_per_step is set."""
    max_micro_batch_size: int | None = Field(gt=0, le=10**9)
    """Largest micro-batch of a rank, in samples; null for its whole share of the global batch."""
    memory_limit_gib: float | None = Field(gt=0, le=1e6)
    """Memory that each rank may use, in GiB: of its CUDA device, as torch's allocator counts it; on
    the CPU, its resident memory. Null: the memory that is free when the run starts, within the
    limits of control groups."""
    memory_margin: float = Field(ge=0, lt=1)
    """Share of that memory to leave free: memory fragments over a long run."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.samples_per_step is None) == (self.tokens_per_step is None):
            raise ValueError("give samples_per_step or tokens_per_step, and make the other null")
        return self

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        given, other = "samples_per_step", "tokens_per_step"
        if self.samples_per_step is None:
            given, other = other, given
        return {**super().not_applicable(config), other: f"{given} gives the global batch"}

    @property
    @override
    def search(self) -> MicroBatchSearch:
        return self

    @override
    def plan(self, *, seq_len: int, ranks: int) -> BatchPlan:
        # All candidates have the same global batch: only memory depends on which one is found.
        largest = self.candidates(seq_len=seq_len, ranks=ranks)[-1]
        share = self._share(seq_len, ranks)
        return LargestPlan(largest, share // largest, ranks, seq_len)

    def candidates(self, *, seq_len: int, ranks: int) -> Sequence[int]:
        """Return the candidates, from 1; ValueError if ranks cannot share the batch evenly."""
        share = self._share(seq_len, ranks)
        # Divisors of a rank's share only: a smaller micro-batch then changes the number of
        # accumulated micro-batches, and nothing that the run computes.
        most = min(share, self.max_micro_batch_size or share)
        return [size for size in range(1, most + 1) if share % size == 0]

    def at_most(self, micro_batch_size: int) -> Self:
        """Return this option with another upper bound."""
        return self.model_copy(update={"max_micro_batch_size": micro_batch_size})

    def decided(self, micro_batch_size: int) -> FixedMicroBatch:
        """Return the option of the run, with a fixed micro-batch."""
        if self.samples_per_step is not None:
            return Samples(
                kind="samples",
                micro_batch_size=micro_batch_size,
                samples_per_step=self.samples_per_step,
            )
        assert self.tokens_per_step is not None, "one of the two is given"  # noqa: S101
        return Tokens(
            kind="tokens", micro_batch_size=micro_batch_size, tokens_per_step=self.tokens_per_step
        )

    def _share(self, seq_len: int, ranks: int) -> int:
        # With micro-batches of one sample, their number is the share.
        plan = self.decided(1).plan(seq_len=seq_len, ranks=ranks)
        return plan.micro_batches
