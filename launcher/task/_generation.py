"""Draws a short text from a causal language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.contracts import Tokenizer


@dataclass(frozen=True, slots=True)
class Taste:
    """What a sample begins with, its length in tokens, and its temperature."""

    prompt: str
    num_tokens: int
    temperature: float


@torch.no_grad()
def generate(module: nn.Module, tokenizer: Tokenizer, taste: Taste, *, max_positions: int) -> str:
    """The prompt and what the model makes of it, up to the end of a document.

    The window is seen anew for every token: for a short text that costs little, and it works for
    any causal model and any length.

    Args:
        module: A transformers causal language model; its training mode is as before on return.
        tokenizer: Its tokenizer.
        taste: What to draw.
        max_positions: Tokens that the model sees at most.

    Returns:
        Text. The same every time: the generator is private and seeded, the global ones are not
        touched.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(module.parameters()).device
    ids: list[int] = tokenizer.encode(taste.prompt).tolist() or [tokenizer.eos_id]
    was_training = module.training
    module.eval()
    try:
        for _ in range(taste.num_tokens):
            window = torch.tensor([ids[-max_positions:]], device=device)
            logits = module(input_ids=window, use_cache=False).logits[0, -1]
            token = _draw(
                logits[: tokenizer.vocab_size].float().cpu(), taste.temperature, generator
            )
            if token == tokenizer.eos_id:
                break
            ids.append(token)
    finally:
        module.train(was_training)
    return tokenizer.decode(ids)


def _draw(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:  # noqa: N803 - V is the vocabulary dim
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities = torch.softmax(logits_V / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
