"""Activation checkpointing: recompute blocks in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints
from typing_extensions import override

from launcher.contracts import ActivationOption, Pattern

if TYPE_CHECKING:
    from torch import nn

Saved = Annotated[str, StringConstraints(pattern=r"^(matmul|attention|\w+\.\w+(\.\w+)?)$")]


class ActivationCheckpoint(ActivationOption):
    """Keep the inputs of blocks, and recompute the rest in the backward pass.

    Memory for activations falls to about one block; a step computes up to a third more. Dropout
    draws the same masks again, so that losses and gradients stay the same.

    Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198
    (selective).
    """

    every: int = Field(ge=1, le=1000)
    """Recompute one of this number of blocks, beginning with the first: 1 recomputes all."""
    save: tuple[Saved, ...]
    """Operations whose results are kept and not computed again: `matmul`, `attention`, or an
    operation of torch such as `aten.mm`. Empty recomputes everything in a block."""
    blocks: tuple[Pattern, ...] | None = Field(min_length=1)
    """Patterns of the names of the blocks. null: the layers that the model repeats."""

    @override
    def apply(self, module: nn.Module) -> None:
        from launcher.activation._recompute import recompute_blocks
        from launcher.blocks import repeated_blocks

        blocks = list(repeated_blocks(module, self.blocks, "activation.blocks").values())
        recompute_blocks(blocks[:: self.every], self.save)
