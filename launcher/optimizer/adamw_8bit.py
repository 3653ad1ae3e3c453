"""8-bit AdamW: bitsandbytes on CUDA, whose kernels are fastest, torchao elsewhere."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from launcher.optimizer._low_bit.options import EightBitAdam


class AdamW8bit(EightBitAdam):
    """AdamW with moments in 8 bits: a quarter of the state.

    Source: Dettmers et al. 2021, arXiv:2110.02861.
    """

    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "AdamW8bit", "torchao": "AdamW8bit"}

    kind: Literal["adamw_8bit"]
