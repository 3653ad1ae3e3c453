"""8-bit RMSprop from bitsandbytes, which alone has it; neither centered nor with momentum."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import UsualLr
from launcher.optimizer._groups.fields import RMS_LR, Epsilon, OpenUnit
from launcher.optimizer._low_bit.options import EightBit


class RMSprop8bit(EightBit):
    """Gradients over the root of their running mean square, which is kept in 8 bits.

    Source: Tieleman & Hinton 2012, lecture 6.5; Dettmers et al. 2021, arXiv:2110.02861.
    """

    group_options: ClassVar[frozenset[str]] = EightBit.group_options | {"eps"}
    classes: ClassVar[Mapping[str, str]] = {"bitsandbytes": "RMSprop8bit"}
    moments: ClassVar[int] = 1
    usual_lrs: ClassVar[Mapping[str, UsualLr | None]] = {"lr": RMS_LR}

    kind: Literal["rmsprop_8bit"]
    alpha: OpenUnit
    """Decay of the running mean of squared gradients."""
    eps: Epsilon
    """Added to the root."""

    @override
    def arguments(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "eps": self.eps}
