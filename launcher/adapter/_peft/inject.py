"""Add pairs of matrices to a network, in place."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from launcher.adapter._peft.options import MOVED, LowRank
from launcher.contracts import Adapted, DType, Head, canonical_name, named_tensors
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest

_TASK_TYPES = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}
# Heads that pretrained weights do not have, as transformers names them: frozen at their first
# values they would be noise.
_NEW_HEADS = frozenset({"classifier", "score", "qa_outputs"})
_NAMED = 3


def add_pairs(module: nn.Module, head: Head, option: LowRank, seed: int) -> None:
    """Freeze the network, and add the pairs and the modules that are trained as a whole."""
    try:
        import peft
    except ImportError as error:
        message = f"needs peft ({error}): pip install 'trainctl[adapter]'"
        raise ConfigError([Problem("adapter.kind", message)]) from error
    saved = modules_to_save(module, head, option)
    targets = _targets(module, option, saved)
    init: dict[str, Any] = {"kaiming": True, "olora": "olora"}
    config = peft.LoraConfig(
        task_type=_TASK_TYPES.get(head.name),
        base_model_name_or_path=getattr(getattr(module, "config", None), "name_or_path", None),
        r=option.rank,
        lora_alpha=option.alpha,
        lora_dropout=option.dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        init_lora_weights=init.get(option.init, option.init),
        use_dora=option.dora,
        use_rslora=option.rslora,
    )
    is_meta = any(param.is_meta for param in module.parameters())
    if is_meta:
        config.init_lora_weights = True  # nothing is computed
    # The same draws on every rank, whatever was drawn before.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # GPT-2's layers are transposed, which peft notices itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module, low_cpu_mem_usage=is_meta)
    if option.init in MOVED and not is_meta:
        _keep_first_values(module)


def adapted(module: nn.Module, stored_bytes: Mapping[str, int] | None = None) -> Adapted:
    """Return the names of what is trained and saved."""
    trained = {canonical_name(n) for n, p in module.named_parameters() if p.requires_grad}
    # Not what is below a frozen layer: bitsandbytes keeps its scales in the state dict.
    buffers = {canonical_name(name) for name, _ in module.named_buffers()}
    saved = [name for name in named_tensors(module) if name in trained or name in buffers]
    return Adapted(sorted(trained), saved, stored_bytes=stored_bytes or {})


def in_format(made: Adapted, module: nn.Module, dtype: DType) -> Adapted:
    """Return the adapter of a network whose frozen weights have a number format of their own."""
    torch_dtype: torch.dtype = getattr(torch, dtype)

    def prepare(module: nn.Module) -> None:
        for param in _frozen(module).values():
            param.data = param.data.to(torch_dtype)

    sizes = {name: p.numel() * torch_dtype.itemsize for name, p in _frozen(module).items()}
    return replace(made, prepare=prepare, stored_bytes=sizes)


def modules_to_save(module: nn.Module, head: Head, option: LowRank) -> list[str]:
    """Return the names of the modules that are trained as a whole."""
    names = [name for name, part in module.named_modules() if name and _has_parameters(part)]
    found = _matching("modules_to_save", option.modules_to_save, names)
    if head.name in _TASK_TYPES and head.name not in {"causal_lm", "seq2seq"}:
        found += [name for name in names if name in _NEW_HEADS and name not in found]
    # A module inside another one of these is trained with it.
    found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    _check_untied(module, found, "modules_to_save")
    return found


def _targets(module: nn.Module, option: LowRank, saved: Sequence[str]) -> list[str] | str:
    from transformers.pytorch_utils import Conv1D

    linear = (nn.Linear, Conv1D)
    kinds = (*linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, kinds)
        and not any(name == other or name.startswith(f"{other}.") for other in saved)
    }
    if option.targets == "all-linear":
        output = getattr(module, "get_output_embeddings", lambda: None)()
        found = [n for n, part in names.items() if isinstance(part, linear) and part is not output]
    else:
        found = _matching("targets", option.targets, list(names))
    left_out = set(_matching("exclude", option.exclude, list(names)))
    found = [name for name in found if name not in left_out]
    if not found:
        raise ConfigError([Problem("adapter.targets", "leaves no module; exclude fewer")])
    _check_untied(module, found, "targets")
    if option.init == "olora" and (odd := [n for n in found if isinstance(names[n], Conv1D)]):
        message = f"olora does not support the transposed layers of this model ({odd[0]})"
        raise ConfigError([Problem("adapter.init", f"{message}; choose pissa")])
    # peft takes a name for the end of names, too.
    others = names.keys() - set(found)
    if any(other.endswith(f".{name}") for name in found for other in others):
        return "|".join(map(re.escape, found))
    return found


def _matching(field: str, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names that a pattern matches; each pattern must match one."""
    problems = []
    for place, pattern in enumerate(patterns):
        if not any(re.search(pattern, name) for name in names):
            last = {name.rpartition(".")[2] for name in names}
            near = closest(pattern, sorted(last)) or sorted(last)
            message = f"{pattern!r} matches no module; there are: {', '.join(near[:8])}"
            problems.append(Problem(f"adapter.{field}.{place}", message))
    if problems:
        raise ConfigError(problems)
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]


def _check_untied(module: nn.Module, names: Iterable[str], field: str) -> None:
    owners: dict[nn.Parameter, list[str]] = {}
    for path, part in module.named_modules():
        for param in part.parameters(recurse=False):
            owners.setdefault(param, []).append(path)
    for name in names:
        for param in module.get_submodule(name).parameters():
            if len(owners[param]) > 1:
                shared = ", ".join(owners[param][:_NAMED])
                message = (
                    f"{name} shares its weights with another module ({shared}), which would keep "
                    "the old ones: exclude it"
                )
                raise ConfigError([Problem(f"adapter.{field}", message)])


def _has_parameters(part: nn.Module) -> bool:
    return any(True for _ in part.parameters())


def _keep_first_values(module: nn.Module) -> None:
    # An export for the unchanged model subtracts their product.
    from peft.tuners.lora import LoraLayer

    for part in module.modules():
        if isinstance(part, LoraLayer):
            first, second = part.lora_A["default"], part.lora_B["default"]
            part.first_values = (first.weight.detach().clone(), second.weight.detach().clone())


def _frozen(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        canonical_name(name): param
        for name, param in module.named_parameters()
        if param.is_floating_point() and not param.requires_grad
    }
