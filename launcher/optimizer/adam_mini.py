"""Adam-mini, with blocks found by the model's config and patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerTarget, Pattern
from launcher.optimizer._groups.fields import Beta, Moments

if TYPE_CHECKING:
    import torch


class AdamMini(Moments):
    """AdamW with one second moment per block: half of Adam's state.

    Blocks: a head of query and key projections, a row of other matrices, a vector, each element of
    a bias.

    Source: Zhang et al. 2024, arXiv:2406.16793, algorithms 1 and 3, and its package adam-mini
    1.1.1.
    """

    kind: Literal["adam_mini"]
    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of the mean squares of blocks."""
    query_key: tuple[Pattern, ...]
    """Patterns of query and key matrices. Unlike other patterns they need not match anything."""
    head_dim: int | None = Field(gt=0, le=2**20)
    """Rows of a query or key matrix that make a head; null takes it from the model's config."""

    @override
    def refuses_shards(self) -> str:
        return "its second moments are means over blocks of rows"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # Not the authors' package: it finds blocks by hard-coded names, takes the number of ranks
        # from torch.cuda instead of the process group, and prints. Tests compare both.
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._torch.adam_mini import BlockwiseAdamW, block_rows

        return BlockwiseAdamW(
            param_groups(target, self),
            block_rows(target, query_key=self.query_key, head_dim=self.head_dim),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
