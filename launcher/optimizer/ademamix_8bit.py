"""8-bit AdEMAMix from bitsandbytes, which alone has it."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from launcher.optimizer._low_bit.options import EightBitAdEMAMix


class AdEMAMix8bit(EightBitAdEMAMix):
    """AdEMAMix with its three moments in 8 bits: less than half of AdamW's state.

    Source: Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1; Dettmers et al. 2021,
        arXiv:2110.02861.
    """

    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "AdEMAMix8bit"}

    kind: Literal["ademamix_8bit"]
