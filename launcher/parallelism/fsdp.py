"""Fully sharded data parallelism: each rank holds a part of every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import (
    ConfigView,
    Engine,
    EngineParts,
    Layout,
    Pattern,
    Placement,
    StateBytes,
)
from launcher.errors import Problem
from launcher.parallelism._several_ranks import SeveralRanks

if TYPE_CHECKING:
    from torch import nn


class FSDP(SeveralRanks):
    """Parameters, gradients and optimizer state sharded over the ranks (FSDP2, `fully_shard`).

    The parameters of a block are gathered before its forward and backward pass and freed
    afterwards. Each rank's optimizer steps its own shards.

    Source: Zhao et al. 2023, arXiv:2304.11277.
    """

    on_one_rank: ClassVar[str] = "one rank holds everything"

    kind: Literal["fsdp"]
    replicas: int = Field(ge=1, le=2**20)
    """Groups of ranks that each hold all parameters, sharded within the group; the ranks of a group
    are consecutive. 1 shards over all ranks; the number of machines shards within each machine."""
    reshard_after_forward: bool
    """Free a block's parameters after its forward pass and gather them again for the backward pass.
    Without it they are kept: less traffic, more memory."""
    reduce_every_micro_batch: bool
    """Reduce the gradients after each micro-batch instead of once per step: the sum of the
    micro-batches is kept in shards, which takes less memory and more traffic."""
    offload: bool
    """Keep parameters, gradients and optimizer state in the host's memory, and step there."""
    wrap: tuple[Pattern, ...] | None = Field(min_length=1)
    """Patterns of the names of the modules whose parameters are gathered together. null: the blocks
    of the model."""

    @override
    def layout(self, ranks: int) -> Layout:
        if ranks == 1 or self.replicas == 1:
            return Layout(dp_shard=ranks)
        if ranks % self.replicas or ranks == self.replicas:
            raise ValueError(
                f"fsdp with parallelism.replicas={self.replicas} needs {2 * self.replicas}, "
                f"{3 * self.replicas}, {4 * self.replicas}, ... ranks, but launch starts {ranks}"
            )
        return Layout(dp_replicate=self.replicas, dp_shard=ranks // self.replicas)

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        precision = config.precision
        if config.launch.ranks > 1 and (reason := precision.refuses_shards()):
            yield Problem(
                "precision.kind",
                f"{precision.kind} is not supported with sharded parameters (parallelism="
                f"{self.kind}): {reason}",
            )

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        if device_type == "mps":
            return {"kind": "fsdp needs cpu or cuda; choose parallelism=single"}
        return {}

    @override
    def placement(self, state: StateBytes, ranks: int) -> Placement:
        whole = super().placement(state, ranks)
        if ranks == 1:
            return whole
        shards = self.layout(ranks).dp_shard
        parts = {
            "weights": -(-whole.weights // shards),
            "gradients": -(-whole.gradients // shards),
            "optimizer": -(-whole.optimizer // shards),
        }
        # Gathered at a time: the group of the root, which is kept, a block and the next one; and
        # the gradients of a block before they are reduced.
        kept = state.others + 2 * state.block if self.reshard_after_forward else state.weights
        gathered = kept + 2 * state.block
        passes = 2 if self.reshard_after_forward else 1
        return Placement(
            **(dict.fromkeys(parts, 0) if self.offload else parts),
            communication=gathered,
            host=parts if self.offload else {},
            sent=(passes * state.weights + state.gradients) * (shards - 1) // shards,
        )

    @override
    def takes_meta_module(self, ranks: int) -> bool:
        return ranks > 1

    @override
    def parameter_bytes(self, module: nn.Module, ranks: int) -> Sequence[int]:
        from launcher.parallelism._local_parameters import row_range

        shards = self.layout(ranks).dp_shard
        held = [0] * shards
        for param in module.parameters():
            row = param.nbytes // max(1, len(param))
            for rank in range(shards):
                start, stop = row_range(len(param), rank, shards)
                held[rank] += (stop - start) * row
        return held * (ranks // shards)

    @override
    def build_distributed(self, parts: EngineParts) -> Engine:
        from launcher.parallelism._fsdp_engine import FSDPEngine

        return FSDPEngine(parts, self)
