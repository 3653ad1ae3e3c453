"""The live formats: plain float32, and float32 parameters with a forward pass cast by operation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from typing_extensions import override

from launcher.contracts import Precision


class Whole(Precision):
    """Float32 throughout."""

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return torch.float32

    @override
    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Autocast(Precision):
    """Float32 parameters; torch's autocast chooses the format of each operation.

    Args:
        device_type: `cpu`, `cuda` or `mps`.
        dtype: Format of the operations that bear it (matrix products); the others stay in float32.
    """

    def __init__(self, device_type: str, dtype: torch.dtype) -> None:
        self._device_type = device_type
        self._dtype = dtype

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return torch.float32

    @override
    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device_type, dtype=self._dtype)
