"""Causal language modelling: predict each token from the previous ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from pydantic import Field, field_validator
from typing_extensions import override

from launcher.contracts import Column, ConfigView, Task, TaskOption, Tokenizer
from launcher.errors import Problem
from launcher.task._columns import TextColumn

_LOWEST_TEMPERATURE = 0.01


class CausalLM(TaskOption):
    """Predict each token from the previous ones.

    Each record is between a BOS or end token and an end token, so that every token of the text is a
    target once per epoch.
    """

    head = "causal_lm"

    score_names: ClassVar[frozenset[str] | None] = frozenset(
        {"eval_loss", "eval_perplexity", "eval_bits_per_byte"}
    )

    columns: TextColumn
    """Names of the columns in the data."""
    packing: bool
    """True: records are concatenated and cut into blocks of `seq_len` tokens, without the
    incomplete last one; attention crosses the ends of records. False: each record is cut by itself,
    and its last sample may be short."""
    add_bos_token: bool | None
    """Begin each record with the tokenizer's BOS token. Null: if the tokenizer itself adds one at
    inference, as those of Llama and Gemma do."""
    loss_chunk_tokens: int | None = Field(gt=0, le=2**24)
    """Tokens whose logits are in memory together; their loss is computed again in the backward
    pass. null: all of a micro-batch, which for a large vocabulary are the largest tensors of a
    step."""
    sample_prompt: str
    """Beginning of the text that is generated after training; empty for a new text."""
    sample_tokens: int = Field(ge=0, le=100_000)
    """Length of the generated text, in tokens, at most the model's positions; 0 for none."""
    sample_temperature: float = Field(ge=0, le=100)
    """0 generates the most probable token, 1 samples from the model's distribution; not between 0
    and 0.01."""

    @field_validator("sample_temperature")
    @classmethod
    def _not_tiny(cls, value: float) -> float:
        # Logits divided by a tiny temperature overflow.
        if 0 < value < _LOWEST_TEMPERATURE:
            raise ValueError(f"must be 0 or at least {_LOWEST_TEMPERATURE}, but is {value:g}")
        return value

    @property
    @override
    def loss_in_head(self) -> str | None:
        return None if self.loss_chunk_tokens is None else "loss_chunk_tokens"

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.loss_chunk_tokens is not None and config.compile.compiles_root:
            yield Problem(
                "compile.scope",
                "must be blocks with task.loss_chunk_tokens, because the head computes its losses "
                "in several parts; write compile.scope=blocks",
            )

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if self.sample_tokens:
            return found
        reason = "sample_tokens is 0"
        return {**found, "sample_prompt": reason, "sample_temperature": reason}

    @override
    def column_specs(self) -> Sequence[Column]:
        return self.columns.specs()

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        from launcher.task._generation import GenerationSettings
        from launcher.task._language_model import LanguageModel

        generation = GenerationSettings(
            self.sample_prompt, self.sample_tokens, self.sample_temperature
        )
        return LanguageModel(
            tokenizer,
            seq_len=self.seq_len,
            packing=self.packing,
            generation=generation,
            add_bos_token=self.add_bos_token,
            text=self.columns.specs()[0],
            loss_chunk_tokens=self.loss_chunk_tokens,
        )
