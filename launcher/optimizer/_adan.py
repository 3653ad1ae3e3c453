"""Adan whose step count can be saved by name."""

from __future__ import annotations

from typing import Any

import torch
from optimi import Adan


class PortableAdan(Adan):
    """Optimi's Adan; its groups count their steps before there is one, too."""

    group_state = ("step",)
    """What the groups remember between steps."""

    def __init__(self, params: list[dict[str, Any]], **options: Any) -> None:
        groups = [dict(group) for group in params]
        for group in groups:
            group["step"] = torch.tensor(0, dtype=torch.int32)
            if "betas" in group:
                group["beta1"], group["beta2"], group["beta3"] = group.pop("betas")
        super().__init__(groups, **options)
