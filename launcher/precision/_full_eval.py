"""Evaluation in sixteen bits with rounded copies of the trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from launcher.contracts import PrecisionOption

if TYPE_CHECKING:
    import torch
    from torch import nn

FullEval = Literal["bf16", "fp16"]


class FullEvalOption(PrecisionOption):
    """A precision whose evaluations may use another number format."""

    full_eval: FullEval | None
    """Number format of weights and activations in evaluations; null: as in training."""


def dtype_of(format_: FullEval) -> torch.dtype:
    """Return torch's dtype of a format."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}[format_]


@contextmanager
def rounded_parameters(module: nn.Module, device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Run the module with rounded copies of its parameters, under autocast.

    Autocast covers inputs and buffers of other formats. Not for sharded parameters, which the
    engine itself replaces in the module.
    """
    import torch
    from torch import nn

    def rounded(param: nn.Parameter) -> nn.Parameter:
        if not param.is_floating_point():
            return param
        return nn.Parameter(param.detach().to(dtype), requires_grad=False)

    with replaced_parameters(module, rounded), torch.autocast(device_type, dtype=dtype):
        yield


@contextmanager
def replaced_parameters(
    module: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]
) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Replace a module's parameters until the context ends; names and sharing stay.

    Args:
        module: The module.
        make: Return the replacement of a parameter; called once per parameter, shared or not.

    Yields:
        Replacements by parameter.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for part in module.modules():
            for name, param in list(part.named_parameters(recurse=False)):
                if param not in made:
                    made[param] = make(param)
                places.append((part, name, param))
                setattr(part, name, made[param])
        yield made
    finally:
        for part, name, param in places:
            setattr(part, name, param)
