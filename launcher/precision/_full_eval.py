"""Evaluation in sixteen bits throughout, while the weights that are trained stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from launcher.contracts import PrecisionOption

if TYPE_CHECKING:
    import torch
    from torch import nn

FullEval = Literal["bf16", "fp16"]


class FullEvalOption(PrecisionOption):
    """A format whose evaluations may run in another one."""

    full_eval: FullEval | None
    """Format of weights and activations in evaluations; null: as in training."""


def dtype_of(format_: FullEval) -> torch.dtype:
    """The format as torch calls it."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}[format_]


@contextmanager
def lowered(module: nn.Module, device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Run the module with rounded copies of its parameters.

    Autocast goes with it, for inputs and buffers of other formats. Not for modules whose parameters
    are sharded: there the engine owns what stands in a module.
    """
    import torch
    from torch import nn

    from launcher.precision._stand_in import stand_ins

    def rounded(param: nn.Parameter) -> nn.Parameter:
        if not param.is_floating_point():
            return param
        return nn.Parameter(param.detach().to(dtype), requires_grad=False)

    with stand_ins(module, rounded), torch.autocast(device_type, dtype=dtype):
        yield
