"""Formats with float32 parameters: float32 throughout, or autocast."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Precision
from launcher.precision._full_eval import FullEval, dtype_of, rounded_parameters
from launcher.precision._loss_scale import DynamicLossScale


class Float32(Precision):
    """Float32 throughout.

    Args:
        device_type: `cpu`, `cuda` or `mps`.
        full_eval: Format of evaluations, where it is another.
    """

    def __init__(self, device_type: str, full_eval: FullEval | None) -> None:
        self._device_type = device_type
        self._full_eval = full_eval

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return torch.float32

    @override
    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    @override
    def evaluation(self, module: nn.Module) -> AbstractContextManager[Any]:
        if self._full_eval is None:
            return self.autocast()
        return rounded_parameters(module, self._device_type, dtype_of(self._full_eval))


class Autocast(Float32):
    """Float32 parameters; torch's autocast chooses the format of each operation.

    Args:
        device_type: `cpu`, `cuda` or `mps`.
        full_eval: Format of evaluations, where it is another.
        dtype: Format of operations that tolerate it (matrix products); others stay in float32.
    """

    def __init__(self, device_type: str, full_eval: FullEval | None, dtype: torch.dtype) -> None:
        super().__init__(device_type, full_eval)
        self._dtype = dtype

    @override
    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device_type, dtype=self._dtype)


class ScaledAutocast(Autocast):
    """Autocast to float16, with a loss scale that keeps gradients within its small range."""

    def __init__(
        self, device_type: str, full_eval: FullEval | None, loss_scale: DynamicLossScale
    ) -> None:
        super().__init__(device_type, full_eval, torch.float16)
        self.loss_scale: DynamicLossScale = loss_scale

    @override
    def state(self) -> Mapping[str, Tensor]:
        return self.loss_scale.state()

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.loss_scale.load_state(state)
