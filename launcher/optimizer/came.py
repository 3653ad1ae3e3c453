"""CAME from pytorch-optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import UsualLr
from launcher.optimizer._groups.fields import ADAM_LR, Beta, LearningRate, Positive
from launcher.optimizer._libraries.options import LibraryOption
from launcher.optimizer._torch.implementation import ForeachOption

if TYPE_CHECKING:
    import torch

    from launcher.contracts import OptimizerTarget


class CAME(LearningRate, ForeachOption, LibraryOption):
    """Adafactor with momentum; updates are smaller where they differ from the momentum.

    Second moments and distances are kept by row and column: about four bytes per parameter in all.

    Source: Luo et al. 2023, arXiv:2307.02047, algorithm 2.
    """

    group_options: ClassVar[frozenset[str]] = LearningRate.group_options | {"betas"}
    clips_itself: ClassVar[bool] = True

    package: ClassVar[tuple[str, str]] = ("pytorch_optimizer", "pytorch-optimizer")
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": ADAM_LR}

    kind: Literal["came"]
    betas: tuple[Beta, Beta, Beta]
    """Decay of the running means of updates, of squared gradients, and of squared distances."""
    eps: tuple[Positive, Positive]
    """Added to squared gradients, and to squared distances."""
    clip_threshold: float = Field(gt=0, le=1e9)
    """Limit of the root mean square of an update, before the learning rate."""

    @override
    def refuses_shards(self) -> str:
        return "its means of rows and columns are of whole matrices"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        # The authors' package is a single file; pytorch-optimizer is tested, typed and released
        # monthly.
        self.preflight()
        from launcher.optimizer._groups.param_groups import param_groups
        from launcher.optimizer._libraries.pytorch_optimizer import PortableCAME

        groups = param_groups(target, self)
        return PortableCAME(
            groups,
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            weight_decouple=True,
            clip_threshold=self.clip_threshold,
            eps1=self.eps[0],
            eps2=self.eps[1],
            foreach=self.use_foreach(groups, target.device_type),
        )
