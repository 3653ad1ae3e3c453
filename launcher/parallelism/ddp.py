"""Data parallelism: every rank holds the whole model and its own share of each window."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Engine, EngineParts, Layout, Placement, StateBytes
from launcher.parallelism._several_ranks import SeveralRanks


class DDP(SeveralRanks):
    """Data parallelism with full weights on every rank (DistributedDataParallel).

    Source: Li et al. 2020, arXiv:2006.15704.
    """

    on_one_rank: ClassVar[str] = "one rank exchanges no gradients"

    kind: Literal["ddp"]
    bucket_mb: int = Field(gt=0, le=4096)
    """Size of the gradients in one all-reduce, in MiB."""
    gradient_as_bucket_view: bool
    """Let gradients be views of the communication buffers, which saves a copy of all gradients."""
    static_graph: bool
    """The graph is the same in every step and every micro-batch: fewer checks, and activation
    checkpointing of any kind works."""
    find_unused_parameters: bool
    """Find parameters that do not contribute to the loss, in every step; costs a pass over the
    graph."""
    gradient_compression: Literal["bf16", "fp16"] | None
    """Number format of gradients in the all-reduce: half the traffic, but rounded; null for no
    compression."""

    @override
    def layout(self, ranks: int) -> Layout:
        return Layout(dp_replicate=ranks)

    @override
    def placement(self, state: StateBytes, ranks: int) -> Placement:
        whole = super().placement(state, ranks)
        if ranks == 1:
            return whole
        # The reducer's buckets are all gradients once more, unless these are views of them.
        buckets = 0 if self.gradient_as_bucket_view else state.gradients
        sent = state.gradients if self.gradient_compression is None else state.gradients // 2
        return replace(whole, communication=buckets, sent=2 * sent * (ranks - 1) // ranks)

    @override
    def build_distributed(self, parts: EngineParts) -> Engine:
        from launcher.parallelism._ddp_engine import DDPEngine

        return DDPEngine(parts, self)
