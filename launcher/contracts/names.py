"""Canonical names of parameters."""

from __future__ import annotations

import re

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
