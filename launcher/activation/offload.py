"""Activations in the host's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ActivationOption, ConfigView, Pattern
from launcher.errors import Problem

if TYPE_CHECKING:
    from torch import nn


class ActivationOffload(ActivationOption):
    """Copy what blocks keep for the backward pass to the host's memory, and back in time.

    The copies overlap with the computation of the following blocks. With `recompute`, only the
    inputs of blocks are kept, and copied. On a CPU the copies save nothing.

    Source: torch.autograd.graph.saved_tensors_hooks; Rajbhandari et al. 2021, arXiv:2104.07857.
    """

    recompute: bool
    """Keep the inputs of blocks only, and recompute the rest, as activation=full does."""
    min_bytes: int = Field(ge=0, le=2**40)
    """Smaller tensors stay on the device."""
    pin_memory: bool
    """Page-lock the host's memory, so that copies overlap with the computation."""
    blocks: tuple[Pattern, ...] | None = Field(min_length=1)
    """Patterns of the names of the blocks. null: the layers that the model repeats."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if config.compile.compiles_root:
            yield Problem(
                "compile.scope",
                "must be blocks with activation=offload, because tensors are moved between the "
                "blocks; write compile.scope=blocks",
            )

    @override
    def cautions(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().cautions(config)
        if config.launch.device == "cpu":
            yield Problem("activation", "saves no memory on a CPU; write activation=full")

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        if device_type == "mps":
            return {"kind": "host and device share their memory; write activation=full"}
        return {}

    @override
    def apply(self, module: nn.Module) -> None:
        from launcher.activation._host_memory import offload_blocks
        from launcher.activation._recompute import recompute_blocks
        from launcher.blocks import repeated_blocks

        blocks = list(repeated_blocks(module, self.blocks, "activation.blocks").values())
        if self.recompute:
            recompute_blocks(blocks, ())
        offload_blocks(blocks, min_bytes=self.min_bytes, pin_memory=self.pin_memory)
