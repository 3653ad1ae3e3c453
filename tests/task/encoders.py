"""Tiny random models and tokenizers, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, BertTokenizerFast

SMALL: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    "roberta": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    "electra": {"hidden_size": 16, "embedding_size": 8, "intermediate_size": 32},
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    "qwen2": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    "mistral": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    "t5": {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "mbart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "mt5": {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8},
}
HEADS = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 70,
    "vocab_size": 384,
}
WORDS = ("red", "blue", "one", "two", "is", "not", "a", "the", "cold", "warm", ".", ",")


def save_config(folder: Path, name: str) -> str:
    """Write the config.json of a tiny model without weights; return the folder."""
    values = {**HEADS, **SMALL[name]}
    if name in {"distilbert", "gpt2", "t5", "mt5"}:
        values = {**SMALL[name], "vocab_size": 384}
    if name in {"bart", "mbart", "t5", "mt5"}:
        values |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    AutoConfig.for_model(name, **values).save_pretrained(folder)
    return str(folder)


def save_word_tokenizer(folder: Path) -> str:
    """Write BERT's tokenizer with a small vocabulary; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    return str(folder)
