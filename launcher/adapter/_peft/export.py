"""Export of an adapter: alone, or merged into the weights of its network."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from launcher.contracts import ExportTarget

_log = logging.getLogger("trainctl.adapter")

_ADAPTER = "default"
_FOLDER = "adapter"


def write(module: nn.Module, target: ExportTarget, formats: str) -> None:
    """Write the adapter to `FOLDER/adapter`, the merged network to the folder, or both."""
    # Before the merge, which removes the pairs; written after it, because the export of the network
    # replaces the folder.
    state, config = _adapter(module)
    if formats != "adapter":
        inputs = target.inputs()
        before = _outputs(module, inputs)
        merge(module)
        target.write(module, target.folder)
        _report_difference(before, _outputs(module, inputs))
    if formats != "merged":
        _write_adapter(state, config, target.folder / _FOLDER)


def merge(module: nn.Module) -> None:
    """Add each product to its matrix, and put the plain layers in their places, in place."""
    for name, part in list(module.named_modules()):
        owner, _, last = name.rpartition(".")
        if isinstance(part, LoraLayer):
            setattr(module.get_submodule(owner), last, _merged(part))
        elif isinstance(part, ModulesToSaveWrapper):
            setattr(module.get_submodule(owner), last, part.modules_to_save[_ADAPTER])
    del module.peft_config


def _merged(part: Any) -> nn.Module:
    base = part.get_base_layer()
    if not hasattr(base.weight, "quant_state"):
        part.merge()
        plain: nn.Module = part.get_base_layer()
        return plain
    # Not peft's merge of 4-bit layers, which quantizes the sum again: small updates would vanish.
    weight = dequantize_module_weight(base).to(torch.float32)
    whole = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
    whole.weight, whole.bias = nn.Parameter(weight, requires_grad=False), base.bias
    part.base_layer = whole
    LoraLinear.merge(part)
    return whole


def _adapter(module: Any) -> tuple[dict[str, Tensor], Any]:
    """Return the adapter's tensors as peft names them, and its config for the unchanged network."""
    config = module.peft_config[_ADAPTER]
    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    first = dict(_first_values(module))
    if first:
        # (W - B₀A₀) + BA = W + [B, -B₀][A; A₀]: twice the rank, at the same scale.
        config = type(config)(**{**config.to_dict(), "init_lora_weights": True})
        config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
        config.r *= 2
        for name, (rows, columns) in first.items():
            down, up = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            state[down] = torch.cat([state[down], rows.to(state[down])])
            state[up] = torch.cat([state[up], -columns.to(state[up])], dim=1)
    config.inference_mode = True
    tensors = {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in state.items()}
    return tensors, config


def _first_values(module: nn.Module) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    for name, part in module.named_modules():
        if (values := getattr(part, "first_values", None)) is not None:
            yield name, values


def _write_adapter(state: Mapping[str, Tensor], config: Any, folder: Path) -> None:
    """Write the files of `PeftModel.save_pretrained`, then rename them to the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_file(dict(state), draft / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(draft)
    # safetensors writes files that only their owner can read.
    for path in draft.iterdir():
        path.chmod((draft / "adapter_config.json").stat().st_mode)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


@torch.no_grad()
def _outputs(module: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    device = next(module.parameters()).device
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    found = module(**moved)
    values = found.values() if isinstance(found, Mapping) else [found]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return [tensor.float() for tensor in tensors if tensor.is_floating_point()]


def _report_difference(before: list[Tensor], after: list[Tensor]) -> None:
    pairs = [(a - b, b) for a, b in zip(after, before, strict=True)]
    difference = max((float(d.abs().max()) for d, _ in pairs), default=0.0)
    largest = max((float(b.abs().max()) for _, b in pairs), default=0.0)
    _log.info(
        "merged export: its outputs differ from those of base and adapter by at most %.2g (the "
        "largest output is %.3g)",
        difference,
        largest,
    )
