"""Finds networks in which a token sees those after it, by trying."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_LENGTH = 16
_TOLERANCE = 1e-5
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
    # Different tokens: equal ones would hide attention to the wrong position.
    ids = torch.arange(2, 2 + _LENGTH).unsqueeze(0) % vocab_size
    changed = ids.clone()
    changed[0, -1] = 1
    was_training = module.training
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            # Not one batch of both: equal shapes give causal models equal logits, bit for bit.
            first, second = (model(input_ids=x, use_cache=False).logits[0] for x in (ids, changed))
    finally:
        module.train(was_training)
    change = (first - second).float().abs().amax(dim=-1)
    return bool(change[:-1].max() > _TOLERANCE * change[-1])
