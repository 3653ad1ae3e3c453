"""Paged 8-bit AdamW from bitsandbytes, which alone has paged state."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from launcher.optimizer._eight_bit import EightBitAdam


class PagedAdamW8bit(EightBitAdam):
    """AdamW with moments in 8 bits that move to the host when the GPU is full.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """

    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "PagedAdamW8bit"}
    paged: ClassVar[bool] = True
    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})

    kind: Literal["paged_adamw_8bit"]
