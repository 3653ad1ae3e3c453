"""Adam from torch.optim: the reference, with a fused kernel for each device."""

from typing import Literal

from typing_extensions import override

from launcher.optimizer._torch_adam import TorchAdam


class Adam(TorchAdam):
    """Adam; its weight decay is a term of the gradient.

    Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 1.
    """

    kind: Literal["adam"]

    @property
    @override
    def decoupled(self) -> bool:
        """No: L2 regularisation, as in the paper's time."""
        return False
