"""LoRA: a frozen network with trained pairs of small matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.adapter._peft.options import LowRank
from launcher.contracts import ConfigView, DType
from launcher.errors import Problem

if TYPE_CHECKING:
    from torch import nn

    from launcher.contracts import Adapted, Head


class LoRA(LowRank):
    """LoRA, also with DoRA's lengths or the scaling of rsLoRA (peft).

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    kind: Literal["lora"]
    base_dtype: DType | None
    """Number format of the frozen weights; null for that of `precision`."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        try:
            is_sharded = config.parallelism.layout(config.launch.ranks).is_sharded
        except ValueError:
            return  # the engine reports it
        if self.base_dtype is not None and is_sharded:
            yield Problem(
                "adapter.base_dtype",
                f"must be null with sharded parameters (parallelism={config.parallelism.kind}): "
                "the parameters of a block are gathered in one number format",
            )

    @override
    def adapt(self, module: nn.Module, head: Head, seed: int) -> Adapted:
        from launcher.adapter._peft.inject import adapted, add_pairs, in_format

        add_pairs(module, head, self, seed)
        made = adapted(module)
        return made if self.base_dtype is None else in_format(made, module, self.base_dtype)
