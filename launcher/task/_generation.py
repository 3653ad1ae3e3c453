"""Generate a short text with a causal language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from typing_extensions import override

from launcher.contracts import Tokenizer


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Settings of the text that is generated after training.

    Attributes:
        prompt: Beginning of the text; may be empty.
        num_tokens: Length of the continuation, in tokens.
        temperature: 0 generates the most probable token, 1 samples from the model's distribution.
    """

    prompt: str
    num_tokens: int
    temperature: float


def generate(
    module: nn.Module, tokenizer: Tokenizer, settings: GenerationSettings, *, bos_id: int | None
) -> str:
    """Return the prompt and the model's continuation, up to its end token."""
    model: Any = module
    device = next(module.parameters()).device
    ids: list[int] = tokenizer.encode(settings.prompt).tolist()
    ids = ids or [tokenizer.eos_id] if bos_id is None else [bos_id, *ids]
    limit = getattr(model.config, "max_position_embeddings", None) or len(ids) + settings.num_tokens
    # Keep space for at least one token after the prompt.
    ids = ids[-limit + 1 :]
    # Set also where neutral: the model's generation_config gives every setting that is missing
    # here.
    sampling = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=min(settings.num_tokens, limit - len(ids)),
        repetition_penalty=1.0,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        **(sampling if settings.temperature else {"do_sample": False}),
    )
    prompt = torch.tensor([ids], device=device)
    was_training = module.training
    module.eval()
    try:
        # A fixed seed, so that texts of different runs can be compared; in a fork, so that the
        # global generators are as before.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            [generated] = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=LogitsProcessorList([_KnownTokens(tokenizer)]),
            ).tolist()
    finally:
        module.train(was_training)
    return tokenizer.decode(generated)


class _KnownTokens(LogitsProcessor):  # type: ignore[misc] # transformers is not typed
    """Allows only the tokenizer's ids, and only the end token after NaN."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        known = scores.clone()
        # Embeddings are often padded to a multiple of 64 rows.
        known[:, self._tokenizer.vocab_size :] = -torch.inf
        end = torch.full_like(scores, -torch.inf)
        end[:, self._tokenizer.eos_id] = 0
        # Sampling from NaN raises an error; a diverged model generates an empty text.
        return torch.where(scores.isnan().any(), end, known)
