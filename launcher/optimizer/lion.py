"""Lion from torch-optimi.

Of the libraries that have Lion (torch-optimi, pytorch-optimizer, timm, bitsandbytes) it is the one
that keeps bfloat16 and float16 weights exact by Kahan summation, and the smallest to install.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.optimizer._extras import require
from launcher.optimizer._fields import Beta

if TYPE_CHECKING:
    import torch


class Lion(OptimizerOption):
    """The sign of an interpolated momentum; wants a third to a tenth of AdamW's lr.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """

    group_options: ClassVar[frozenset[str]] = OptimizerOption.group_options | {"betas"}
    elementwise: ClassVar[bool] = True

    kind: Literal["lion"]
    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[Beta, Beta]
    """Weight of the momentum in the update, and decay of the momentum."""
    kahan_sum: bool | None
    """Keep what rounding takes from the weights; null does so for 16-bit weights."""

    @override
    def preflight(self) -> None:
        """See that torch-optimi is installed."""
        require("optimi", extra="lion", kind=self.kind)

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """Optimi's Lion."""
        self.preflight()
        from launcher.optimizer._lion import lion

        return lion(target, self)
