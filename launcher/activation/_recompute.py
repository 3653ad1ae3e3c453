"""Recompute blocks in the backward pass, except the operations whose results are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from typing_extensions import override

from launcher.blocks import give_class
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest, did_you_mean

_FAMILIES = {
    "matmul": ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled_mm"),
    "attention": (
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "aten._scaled_dot_product_fused_attention_overrideable",
        "higher_order.flex_attention",
    ),
}


class Recomputed(nn.Module):
    """A block whose forward pass runs again in the backward pass."""

    # In `forward`, and not around the module: hooks of the block, such as those of FSDP that
    # gather its parameters, must not run again.

    # One partial with all options: torch.compile does not resolve them from other places.
    recompute: ClassVar[Any] = staticmethod(partial(checkpoint, use_reentrant=False))

    @override
    def forward(self, *args: Any, **inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **inputs)
        return self.recompute(super().forward, *args, **inputs)


def recompute_blocks(blocks: Iterable[nn.Module], save: Sequence[str]) -> None:
    """Let blocks recompute everything but the results of some operations.

    Args:
        blocks: None within another.
        save: Families of operations, or names such as `aten.mm`.

    Raises:
        ConfigError: There is no such operation.
    """
    mixin: type[Recomputed] = Recomputed
    if save:
        policy = partial(_policy, _operations(save))
        contexts = partial(create_selective_checkpoint_contexts, policy)
        recompute = partial(checkpoint, use_reentrant=False, context_fn=contexts)
        mixin = type("Recomputed", (Recomputed,), {"recompute": staticmethod(recompute)})
    for block in blocks:
        give_class(block, mixin)


def _policy(
    kept: frozenset[Any], _context: Any, operation: Any, *_args: Any, **_inputs: Any
) -> CheckpointPolicy:
    if operation in kept or getattr(operation, "overloadpacket", None) in kept:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _operations(save: Sequence[str]) -> frozenset[Any]:
    found = set()
    for place, word in enumerate(save):
        names = _FAMILIES.get(word, (word,))
        # Not every build of torch has every kernel of a family.
        known = [operation for name in names if (operation := _operation(name)) is not None]
        if not known:
            hint = did_you_mean(closest(word, _FAMILIES))
            message = f"must be matmul, attention or an operation of torch, but is {word}{hint}"
            raise ConfigError([Problem(f"activation.save[{place}]", message)])
        found.update(known)
    return frozenset(found)


def _operation(name: str) -> Any:
    found: Any = torch.ops
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except (AttributeError, RuntimeError):
            return None
    return found
