"""Draws a short text from a causal language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.contracts import Tokenizer


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How a text is generated.

    Attributes:
        prompt: Its beginning; empty for the beginning of a document.
        num_tokens: Its length after the prompt, in tokens.
        temperature: 0 takes the likeliest token, 1 draws from the model's distribution.
    """

    prompt: str
    num_tokens: int
    temperature: float


@torch.no_grad()
def generate(
    module: nn.Module, tokenizer: Tokenizer, settings: GenerationSettings, *, max_positions: int
) -> str:
    """The prompt and what the model makes of it, up to the end of a document.

    The window is seen anew for every token, and always at its full width: that works for any causal
    model, at any length, and one shape of input is far quicker than a new one for every token.

    Args:
        module: A transformers causal language model; its training mode is as before on return.
        tokenizer: Its tokenizer.
        settings: Prompt, length and temperature.
        max_positions: Tokens that the model sees at most.

    Returns:
        Text. The same every time: the generator is private and seeded, the global ones are not
        touched.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(module.parameters()).device
    ids: list[int] = tokenizer.encode(settings.prompt).tolist() or [tokenizer.eos_id]
    width = min(len(ids) + settings.num_tokens, max_positions)
    was_training = module.training
    module.eval()
    try:
        for _ in range(settings.num_tokens):
            window = ids[-width:]
            # What stands to the right of the last token cannot be seen from it.
            padding = [tokenizer.eos_id] * (width - len(window))
            input_ids = torch.tensor([window + padding], device=device)
            logits = module(input_ids=input_ids, use_cache=False).logits[0, len(window) - 1]
            known = logits[: tokenizer.vocab_size].float().cpu()
            if known.isnan().any():
                break  # weights that overflowed have nothing to say, and the run has said so
            token = _draw(known, settings.temperature, generator)
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
