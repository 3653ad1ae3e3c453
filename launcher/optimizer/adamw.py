"""AdamW from torch.optim: the reference, with a fused kernel for each device."""

from typing import Literal

from typing_extensions import override

from launcher.optimizer._torch_adam import TorchAdam


class AdamW(TorchAdam):
    """Adam with decoupled weight decay.

    Source: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2.
    """

    kind: Literal["adamw"]

    @property
    @override
    def decoupled(self) -> bool:
        """Yes: that is what the W says."""
        return True
