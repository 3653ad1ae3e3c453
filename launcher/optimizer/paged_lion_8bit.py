"""Paged 8-bit Lion from bitsandbytes, which alone has paged state."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from launcher.optimizer._eight_bit import EightBitLion


class PagedLion8bit(EightBitLion):
    """Lion with a momentum in 8 bits that moves to the host when the GPU is full.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2; Dettmers et al. 2023, arXiv:2305.14314,
        section 3.
    """

    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "PagedLion8bit"}
    paged: ClassVar[bool] = True
    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})

    kind: Literal["paged_lion_8bit"]
