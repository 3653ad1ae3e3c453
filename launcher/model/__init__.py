"""Networks and their tokenizers; one module per kind.

A kind is a `ModelOption`: it returns the limits of the network (`limits`), builds it for a task's
head (`build`), and builds its tokenizer (`build_tokenizer`). It is independent of engines and
number formats, and never downloads, unpickles, or runs code from a model's folder.

To add one: `launcher/model/<kind>.py` with one public subclass of `ModelOption`, and a preset
`conf/model/<kind>.yaml` that gives every field a value. A new size of a known kind is a YAML file
alone.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from launcher.contracts import DType, Head, InitialWeights, ModelOption

_log = logging.getLogger("trainctl.model")
_CHUNK_ELEMENTS = 1 << 20


def attention_of(module: nn.Module) -> str | None:
    """Return the attention that a network uses, as `model.attention`; None if it has no such."""
    from launcher.model._attention import attention_of

    return attention_of(module)


def build_module(option: ModelOption, head: Head, seed: int) -> nn.Module:
    """Build a network on the CPU, initialise the weights that no file has, and check it."""
    from launcher.model._initial_weights import initialize_weights

    module = option.build(head, "cpu")
    initialize_weights(module, seed)
    option.check_module(module, head)
    return module


def build_meta_module(
    option: ModelOption, head: Head, seed: int
) -> tuple[nn.Module, InitialWeights | None]:
    """Build a network on the meta device, and what fills shards of its weights.

    Returns:
        None for the weights of a network that is built with memory: its option knows no meta
        device, or files have its weights in another form. It is as `build_module` builds it.
    """
    from launcher.model._shards import DrawnWeights

    module = option.build(head, "meta")
    if not all(param.is_meta for param in module.parameters()):
        return build_module(option, head, seed), None
    drawn = DrawnWeights(option, head, seed, copy.deepcopy(module))
    if not option.has_pretrained_weights:
        return module, drawn
    files = option.saved_weights(head)
    if files is None:
        _log.info(
            "the weights have other names or shapes in their files than in the model: every rank "
            "loads all of them before they are sharded"
        )
        return build_module(option, head, seed), None
    from launcher.model._pretrained import PretrainedWeights

    return module, PretrainedWeights(files, drawn)


def cast_parameters(
    module: nn.Module,
    dtype: DType,
    allocate: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None,
) -> None:
    """Cast all parameters in place, unless a finite value is too large for the format.

    Args:
        module: The network.
        dtype: The new format.
        allocate: Returns memory of a shape and a format for each; None for the device's.
    """
    import torch

    # Not buffers: router biases and running means lose too much in 16 bits.
    target: torch.dtype = getattr(torch, dtype)
    limit = torch.finfo(target).max
    for name, parameter in module.named_parameters():
        # In chunks: a copy of the largest matrix may be all that the host has room for.
        for chunk in torch.split(parameter.detach().reshape(-1), _CHUNK_ELEMENTS):
            if chunk.numel() and chunk.abs().nan_to_num(posinf=0).max() > limit:
                # bfloat16 weights above 65,504 would be infinite in float16: the export would be
                # useless.
                _log.warning("%s does not fit into %s: exported as trained", name, dtype)
                return
    for parameter in module.parameters():
        if allocate is None or parameter.dtype == target:
            parameter.data = parameter.data.to(target)
        else:
            parameter.data = allocate(tuple(parameter.shape), target).copy_(parameter.data)


def replace_tensors(module: nn.Module, replaced: Mapping[Tensor, Tensor]) -> None:
    """Replace parameters and buffers in a network, under each of their names."""
    from launcher.model import _initial_weights

    _initial_weights.replace_tensors(module, replaced)
