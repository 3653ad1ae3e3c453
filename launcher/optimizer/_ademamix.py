"""AdEMAMix whose step count can be saved by name."""

from __future__ import annotations

from typing import Any

from pytorch_optimizer import AdEMAMix


class PortableAdEMAMix(AdEMAMix):
    """AdEMAMix of pytorch-optimizer; its groups count their steps before there is one, too."""

    group_state = ("step",)
    """What the groups remember between steps."""

    def __init__(self, params: list[dict[str, Any]], **options: Any) -> None:
        super().__init__([{**group, "step": 0} for group in params], **options)
