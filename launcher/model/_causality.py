"""Finds networks in which a token sees those after it, by trying."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_LENGTH = 16
_TOLERANCE = 1e-4
"""Share of the last logits' change that rounding may cause in earlier ones."""


@torch.no_grad()
def sees_later_tokens(module: nn.Module) -> bool:
    """Return True if a change of the last token changes the logits of earlier ones.

    Args:
        module: A transformers model with logits for each token; its training mode is as before on
            return.
    """
    model: Any = module
    vocab_size = model.config.get_text_config().vocab_size
    ids = torch.arange(2, 2 + _LENGTH).repeat(2, 1) % vocab_size
    ids[1, -1] = 1
    was_training = module.training
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            logits = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        module.train(was_training)
    change = (logits[0] - logits[1]).abs().amax(dim=-1)
    return bool(change[:-1].max() > _TOLERANCE * change[-1])
