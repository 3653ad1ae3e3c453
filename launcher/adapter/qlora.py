"""QLoRA: LoRA on a network whose matrices are kept in 4 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.adapter._peft.options import MOVED, LowRank
from launcher.contracts import ConfigView, DType
from launcher.errors import Problem

if TYPE_CHECKING:
    from torch import nn

    from launcher.contracts import Adapted, Head


class QLoRA(LowRank):
    """LoRA on a frozen network whose linear layers are kept in 4 bits (peft, bitsandbytes).

    Source: Dettmers et al. 2023, arXiv:2305.14314.
    """

    kind: Literal["qlora"]
    quant_type: Literal["nf4", "fp4"]
    """4-bit format: quantiles of a normal distribution, or floats."""
    double_quant: bool
    """Keep the scales of the blocks in 8 bits."""
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field()
    """Weights that share a scale."""
    compute_dtype: DType
    """Number format in which the 4-bit layers compute."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.init in MOVED:
            yield Problem(
                "adapter.init",
                f"must be kaiming, gaussian or orthogonal for qlora, but is {self.init}, which "
                "changes the frozen matrices after they were quantized",
            )
        try:
            is_sharded = config.parallelism.layout(config.launch.ranks).is_sharded
        except ValueError:
            return  # the engine reports it
        if is_sharded:
            yield Problem(
                "parallelism.kind",
                f"{config.parallelism.kind} cannot shard the 4-bit weights of adapter=qlora; "
                "choose parallelism=ddp, or adapter=lora with sharded parameters",
            )

    @override
    def adapt(self, module: nn.Module, head: Head, seed: int) -> Adapted:
        from launcher.adapter._peft.four_bit import quantize
        from launcher.adapter._peft.inject import adapted, add_pairs, modules_to_save

        stored_bytes = quantize(module, self, kept=modules_to_save(module, head, self))
        add_pairs(module, head, self, seed)
        return adapted(module, stored_bytes)
