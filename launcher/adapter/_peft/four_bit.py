"""Linear layers with weights in 4 bits, through bitsandbytes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import nn

from launcher.contracts import canonical_name
from launcher.errors import ConfigError, Problem

if TYPE_CHECKING:
    from launcher.adapter.qlora import QLoRA

# Block of the scales that double quantization keeps in 8 bits, with a scale of its own.
_SCALES_BLOCK = 256


def quantize(module: nn.Module, option: QLoRA, kept: Collection[str]) -> dict[str, int]:
    """Replace the linear layers in place, but the output layer and the modules that are trained.

    On the meta device they stay as they are.

    Returns:
        The bytes of their weights, by name.
    """
    sizes = {}
    for name, layer in _layers(module, kept):
        sizes[f"{canonical_name(name)}.weight"] = _bytes(layer.weight.numel(), option)
        if not layer.weight.is_meta:
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, _quantized(layer, option))
    return sizes


def _bytes(elements: int, option: QLoRA) -> int:
    scales = -(-elements // option.block_size)
    if not option.double_quant:
        return -(-elements // 2) + 4 * scales
    return -(-elements // 2) + scales + 4 * -(-scales // _SCALES_BLOCK)


def _layers(module: nn.Module, kept: Collection[str]) -> list[tuple[str, nn.Linear]]:
    output = getattr(module, "get_output_embeddings", lambda: None)()
    found = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and part is not output
        and not any(name == other or name.startswith(f"{other}.") for other in kept)
    ]
    if not found:
        message = "qlora finds no linear layer to quantize in this model; choose adapter=lora"
        raise ConfigError([Problem("adapter.kind", message)])
    return found


def _quantized(layer: nn.Linear, option: QLoRA) -> nn.Module:
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        message = f"needs bitsandbytes ({error}): pip install 'trainctl[adapter,8bit]'"
        raise ConfigError([Problem("adapter.kind", message)]) from error
    made: nn.Module = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=getattr(torch, option.compute_dtype),
        quant_type=option.quant_type,
        compress_statistics=option.double_quant,
        device="meta",
    )
    made.weight = bnb.nn.Params4bit(
        layer.weight.detach(),
        requires_grad=False,
        quant_type=option.quant_type,
        compress_statistics=option.double_quant,
        blocksize=option.block_size,
        module=made,
    )
    made.bias = layer.bias
    # The first move to a device quantizes, also one to the CPU.
    return made.to(layer.weight.device)
