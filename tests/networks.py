"""Small transformers models for tests."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(**changes: Any) -> Any:
    """Build a Llama with the vocabulary of byt5 and random weights; `changes` go to its config."""
    sizes = {
        "vocab_size": 384,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 50,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))
