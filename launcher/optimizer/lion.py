"""Lion from torch-optimi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import OptimizerTarget, UsualLr
from launcher.optimizer._groups.fields import LION_LR, Beta, KahanSum, LearningRate
from launcher.optimizer._libraries.options import LibraryOption

if TYPE_CHECKING:
    import torch


class Lion(LearningRate, KahanSum, LibraryOption):
    """The sign of an interpolated momentum; needs a third to a tenth of AdamW's lr.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """

    group_options: ClassVar[frozenset[str]] = LearningRate.group_options | {"betas"}
    elementwise: ClassVar[bool] = True

    package: ClassVar[tuple[str, str]] = ("optimi", "torch-optimi")
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": LION_LR}

    kind: Literal["lion"]
    betas: tuple[Beta, Beta]
    """Weight of the momentum in the update, and decay of the momentum."""

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # Of torch-optimi, pytorch-optimizer, timm and bitsandbytes it is the only one with Kahan
        # summation for bfloat16 and float16 weights, and the smallest to install.
        self.preflight()
        from launcher.optimizer._libraries.optimi import lion

        return lion(target, self)
