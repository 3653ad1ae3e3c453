"""Paged 8-bit AdEMAMix from bitsandbytes, which alone has paged state."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from launcher.optimizer._eight_bit import EightBitAdEMAMix


class PagedAdEMAMix8bit(EightBitAdEMAMix):
    """AdEMAMix with moments in 8 bits that move to the host when the GPU is full.

    Source: Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1; Dettmers et al. 2023,
        arXiv:2305.14314, section 3.
    """

    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "PagedAdEMAMix8bit"}
    paged: ClassVar[bool] = True
    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})

    kind: Literal["paged_ademamix_8bit"]
