"""8-bit Adam: bitsandbytes on CUDA, whose kernels are fastest, torchao elsewhere."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from launcher.optimizer._low_bit.options import EightBitAdam


class Adam8bit(EightBitAdam):
    """Adam with moments in 8 bits, without weight decay.

    Source: Dettmers et al. 2021, arXiv:2110.02861.
    """

    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "Adam8bit", "torchao": "Adam8bit"}

    kind: Literal["adam_8bit"]

    @model_validator(mode="after")
    def _no_decay(self) -> Self:
        if self.weight_decay != 0:
            raise ValueError(
                "weight_decay: the libraries disagree on what it means for Adam; use adamw_8bit"
            )
        return self
