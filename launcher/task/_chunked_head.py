"""Cross entropy of a language model without the logits of all tokens at once."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from launcher.blocks import give_class
from launcher.errors import ConfigError, Problem
from launcher.task._token_samples import NO_TARGET

_KEY = "task.loss_chunk_tokens"
# Settings in config.json with which a model changes logits after its head; None or 1 changes none.
_CHANGES = (
    "final_logit_softcapping",
    "output_logit_soft_cap",
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
)


def chunk_head(module: nn.Module, tokens: int) -> None:
    """Let a model return the loss of each token in place of logits, if it is called with targets.

    Its forward pass then takes `loss_labels`, shape (B, T), int64, `NO_TARGET` for no target, and
    `logits` of its output are the cross entropies in nats: shape (B, T), float32.

    Args:
        module: A model of transformers with a language-model head.
        tokens: Number of tokens whose logits are in memory together.

    Raises:
        ConfigError: The model has no such head, or uses the logits for more than the loss.
    """
    # Inside the forward pass: engines that shard or reduce parameters gather them for it.
    model: Any = module
    find = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = find() if find is not None else None
    if head is None:
        raise _refused(module, "has no language-model head that transformers knows")
    if getattr(model, "z_loss_coefficient", 0) > 0:
        raise _refused(module, "adds a z-loss, which is computed from all logits")
    config = getattr(model, "config", None)
    changes = [name for name in _CHANGES if getattr(config, name, None) not in {None, 1}]
    if changes:
        raise _refused(module, f"changes the logits after its head ({changes[0]} in config.json)")
    give_class(head, type("ChunkedHead", (ChunkedHead,), {"chunk_tokens": tokens}))
    give_class(module, _with_targets(type(module)))


class ChunkedHead(nn.Module):
    """A head that computes the losses of its targets chunk by chunk, while it has targets."""

    chunk_tokens: ClassVar[int]
    targets: Tensor | None = None
    losses: Tensor | None = None

    @override
    def forward(self, hidden: Tensor) -> Tensor:
        logits_of = super().forward
        if self.targets is None:
            logits: Tensor = logits_of(hidden)
            return logits

        def losses(part: Tensor, targets: Tensor) -> Tensor:
            with _without_cast_cache(part.device.type):
                logits = logits_of(part)
            return F.cross_entropy(
                logits.float(), targets, ignore_index=NO_TARGET, reduction="none"
            )

        # Recomputed in the backward pass, where autograd would keep every chunk. Without random
        # numbers, so that no generator state has to be saved.
        again = functools.partial(
            checkpoint, losses, use_reentrant=False, preserve_rng_state=False
        )  # fmt: skip
        compute = again if torch.is_grad_enabled() else losses
        rows = torch.split(hidden.flatten(0, -2), self.chunk_tokens)
        parts = zip(rows, torch.split(self.targets.flatten(), self.chunk_tokens), strict=True)
        found = torch.cat([compute(part, own) for part, own in parts])
        self.losses = found.view_as(self.targets)
        return self.losses


def _without_cast_cache(device_type: str) -> torch.autocast:
    # A cast that all chunks share would add up their gradients in 16 bits.
    return torch.autocast(
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
        cache_enabled=False,
    )


def _with_targets(cls: Any) -> type[nn.Module]:
    """Return the mixin for a model's class that hands targets to the head."""

    # With the model's signature, from which generation learns the arguments.
    @functools.wraps(cls.forward)
    def forward(
        self: Any, *args: Any, loss_labels: Tensor | None = None, **inputs: Any
    ) -> Any:  # fmt: skip
        head = self.get_output_embeddings()
        head.targets = loss_labels
        try:
            outputs = cls.forward(self, *args, **inputs)
            if loss_labels is not None and outputs.logits is not head.losses:
                raise _refused(self, "changes the logits after its head")
        finally:
            head.targets = head.losses = None
        return outputs

    return type("WithTargets", (nn.Module,), {"forward": forward})


def _refused(module: nn.Module, why: str) -> ConfigError:
    message = f"must be null, because {type(module).__name__} {why}"
    return ConfigError([Problem(_KEY, message)])
