"""The Llama architecture, from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import Head, ModelLimits, Tokenizer
from launcher.model._attention import TransformersOption, set_attention
from launcher.model._folder import check_tokenizer
from launcher.model._tokenizer_name import BYT5, BYT5_VOCAB_SIZE, build_tokenizer

if TYPE_CHECKING:
    from torch import nn


class Llama(TransformersOption):
    """Llama from random weights: RMS norms, rotary positions, gated MLP, grouped-query attention.

    Source: Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783; the
    code is transformers'.
    """

    # transformers has no masked and no sequence-to-sequence Llama.
    heads = (
        "causal_lm",
        "sequence_classification",
        "token_classification",
        "question_answering",
    )

    tokenizer: str = Field(min_length=1)
    """`byt5` for plain bytes, which needs no files, or the local folder of a tokenizer."""
    vocab_size: int = Field(gt=0, le=2**24)
    """Rows of the embedding table; at least the tokenizer's number of ids."""
    hidden_size: int = Field(gt=0, le=2**17)
    """Width of the residual stream."""
    intermediate_size: int = Field(gt=0, le=2**20)
    """Width inside the gated MLP."""
    num_layers: int = Field(gt=0, le=1000)
    """Transformer blocks."""
    num_heads: int = Field(gt=0, le=2**12)
    """Query heads; divides `hidden_size` into heads of an even width."""
    num_kv_heads: int = Field(gt=0, le=2**12)
    """Key and value heads, shared by groups of query heads; divides `num_heads`."""
    max_positions: int = Field(gt=0, le=2**27)
    """Longest sequence, in tokens."""
    rope_theta: float = Field(ge=1, le=1e12)
    """Base of the rotary wavelengths."""
    norm_eps: float = Field(gt=0, le=1)
    """Added to the mean square in RMS norms."""
    init_std: float = Field(ge=0, le=1)
    """Standard deviation of the normal distribution that weights are drawn from."""
    tie_embeddings: bool
    """Share one matrix between input and output embeddings."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 x num_heads = {2 * self.num_heads} (rotary "
                f"positions pair the dims of a head), but is {self.hidden_size}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads = {self.num_heads}, but is {self.num_kv_heads}"
            )
        return self

    @model_validator(mode="after")
    def _bytes_fit(self) -> Self:
        if self.tokenizer == BYT5 and self.vocab_size < BYT5_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size must be at least {BYT5_VOCAB_SIZE} for tokenizer byt5, but is "
                f"{self.vocab_size}"
            )
        return self

    @override
    def preflight(self) -> None:
        super().preflight()
        if self.tokenizer != BYT5:
            check_tokenizer(Path(self.tokenizer).expanduser(), self.vocab_size)

    @property
    @override
    def approximate_size(self) -> int:
        width, kv_width = self.hidden_size, self.hidden_size // self.num_heads * self.num_kv_heads
        attention = 2 * width * (width + kv_width)
        mlp = 3 * width * self.intermediate_size
        embeddings = self.vocab_size * width * (1 if self.tie_embeddings else 2)
        norms = (2 * self.num_layers + 1) * width
        return embeddings + self.num_layers * (attention + mlp) + norms

    @override
    def limits(self) -> ModelLimits:
        return ModelLimits(self.vocab_size, self.max_positions)

    @override
    def shrunk(self, folder: Path, seq_len: int) -> Llama:
        del folder
        kv_heads = min(self.num_kv_heads, 2)
        heads = kv_heads * min(self.num_heads // self.num_kv_heads, 2)
        small = {
            "num_layers": min(self.num_layers, 2),
            "num_kv_heads": kv_heads,
            "num_heads": heads,
            "hidden_size": min(self.hidden_size, 8 * heads),
            "intermediate_size": min(self.intermediate_size, 48),
            "max_positions": min(self.max_positions, seq_len),
        }
        return self.model_copy(update=small)

    @override
    def build(self, head: Head, device: str) -> nn.Module:
        from transformers import LlamaConfig

        from launcher.model._network import build_on_meta, set_pad_id

        tokenizer = self.build_tokenizer()
        config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            max_position_embeddings=self.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            rms_norm_eps=self.norm_eps,
            initializer_range=self.init_std,
            tie_word_embeddings=self.tie_embeddings,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
        )
        set_pad_id(config, head, lambda: tokenizer)
        # Nothing to load: the weights are drawn after the module is built.
        del device
        set_attention(config, head, self.attention)
        return build_on_meta(config, head)

    @override
    def build_tokenizer(self) -> Tokenizer:
        return build_tokenizer(self.tokenizer, self.vocab_size)
