"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ConfigView, Task, TaskOption, Tokenizer


class CausalLM(TaskOption):
    """Predict each token from those before it.

    Each document follows an end token and is followed by one, so that every token of the text is a
    target once an epoch, the first of a document too.
    """

    head = "causal_lm"

    score_names: ClassVar[frozenset[str] | None] = frozenset(
        {"eval_loss", "eval_perplexity", "eval_bits_per_byte"}
    )

    packing: bool
    """True: documents are joined and cut into blocks of `seq_len` tokens; only the last, ragged
    block of all is left out, and attention may look across the end of a document. False: each
    document is cut by itself, and its last piece is as long as it is."""
    sample_prompt: str
    """What the sample at the end of the run begins with; empty for the beginning of a document."""
    sample_tokens: int = Field(ge=0)
    """Length of that sample, in tokens; 0 for none."""
    sample_temperature: float = Field(ge=0)
    """Its randomness: 0 takes the likeliest token, 1 draws from the model's distribution."""

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if self.sample_tokens:
            return found
        reason = "sample_tokens is 0"
        return {**found, "sample_prompt": reason, "sample_temperature": reason}

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        from launcher.task._generation import GenerationSettings
        from launcher.task._language_model import LanguageModel

        generation = GenerationSettings(
            self.sample_prompt, self.sample_tokens, self.sample_temperature
        )
        return LanguageModel(
            tokenizer, seq_len=self.seq_len, packing=self.packing, generation=generation
        )
