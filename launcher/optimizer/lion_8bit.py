"""8-bit Lion from bitsandbytes, which alone has it."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from launcher.contracts import UsualLr
from launcher.optimizer._groups.fields import LION_LR
from launcher.optimizer._low_bit.options import EightBitLion


class Lion8bit(EightBitLion):
    """Lion with its momentum in 8 bits: an eighth of AdamW's state.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2; Dettmers et al. 2021, arXiv:2110.02861.
    """

    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "Lion8bit"}
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": LION_LR}

    kind: Literal["lion_8bit"]
