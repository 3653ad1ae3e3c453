"""Canonical names of parameters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_PARALLEL = re.compile(r"^(module\.)+")


def canonical_name(name: str) -> str:
    """Return a parameter's name without the parts that wrappers put into it.

    Patterns, optimizer groups and checkpoints use this name only, so that they mean the same under
    every engine. Removed are the names under which torch.compile, activation checkpointing and FSDP
    keep the wrapped module, anywhere, and leading `module.`, as DistributedDataParallel and
    DeepSpeed have it.
    """
    return _PARALLEL.sub("", _WRAPPERS.sub("", name))


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by canonical name, detached.

    A tied tensor is there once, by its first name.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[canonical_name(name)] = tensor.detach()
    return tensors
