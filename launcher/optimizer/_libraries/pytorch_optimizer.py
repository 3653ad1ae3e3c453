"""AdEMAMix, CAME and SOAP of pytorch-optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_optimizer import CAME, SOAP, AdEMAMix
from pytorch_optimizer.optimizer.utils.shape import merge_small_dims
from torch import Tensor
from typing_extensions import override

from launcher.optimizer._torch.base_optimizer import Copyable


class PortableCAME(Copyable, CAME):
    """CAME of pytorch-optimizer."""


class PortableAdEMAMix(Copyable, AdEMAMix):
    """AdEMAMix whose groups have a step count from the start."""

    group_state = ("step",)

    def __init__(self, params: list[dict[str, Any]], **options: Any) -> None:
        # The library adds it in the first step: a checkpoint before that would lack it.
        super().__init__([{**group, "step": 0} for group in params], **options)


class PortableSOAP(Copyable, SOAP):
    """SOAP whose lists of matrices are tensors `GG.<dim>` and `Q.<dim>` between steps."""

    # The library keeps a list of matrices per parameter, one per dim and empty where a dim is not
    # preconditioned: not a state that can be saved and loaded by name.

    group_state = ("step",)

    def __init__(self, params: list[dict[str, Any]], **options: Any) -> None:
        super().__init__([{**group, "step": 0} for group in params], **options)

    @override
    def merge_dims(self, grad: Tensor, max_precondition_dim: int) -> Tensor:
        return grad.reshape(_merged(grad.shape, max_precondition_dim))

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                if param in self.state:
                    _fold(self.state[param], group)
        loss = super().step(closure)
        for state in self.state.values():
            _unfold(state)
        return loss


def _merged(shape: Sequence[int], max_precondition_dim: int) -> list[int]:
    # The library's own function returns [1] for a shape that becomes a single dim.
    size = math.prod(shape)
    if size <= max_precondition_dim:
        return [size]
    merged: list[int] = merge_small_dims(list(shape), max_precondition_dim)
    return merged


def _unfold(state: dict[str, Any]) -> None:
    for name in ("GG", "Q"):
        for dim, matrix in enumerate(state.pop(name, [])):
            if len(matrix):
                state[f"{name}.{dim}"] = matrix
    # Settings, which the library copies into the state: a resume may change them.
    state.pop("precondition_frequency", None)
    state.pop("shampoo_beta", None)


def _fold(state: dict[str, Any], group: dict[str, Any]) -> None:
    shape = state["exp_avg"].size()
    if group["merge_dims"] and len(shape) != 1:
        shape = _merged(shape, group["max_precondition_dim"])
    for name in ("GG", "Q"):
        state[name] = [state.pop(f"{name}.{dim}", []) for dim in range(len(shape))]
    beta = group["shampoo_beta"]
    state["shampoo_beta"] = group["betas"][1] if beta is None else beta
    state["precondition_frequency"] = group["precondition_frequency"]
