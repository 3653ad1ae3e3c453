"""Masked language modelling: predict hidden tokens from both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Column, ConfigView, Task, TaskOption
from launcher.errors import Problem
from launcher.task._columns import TextColumn

if TYPE_CHECKING:
    from launcher.contracts import Tokenizer


class MaskedLM(TaskOption):
    """Predict hidden tokens from the tokens on both sides.

    In each epoch other tokens are hidden, and the same ones in every evaluation. A share of the
    hidden tokens is replaced by the mask token, another by random tokens, and the rest is kept.

    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1.
    """

    head = "masked_lm"

    score_names: ClassVar[frozenset[str] | None] = frozenset(
        {"eval_loss", "eval_perplexity", "eval_accuracy"}
    )

    columns: TextColumn
    """Names of the columns in the data."""
    packing: bool
    """True: records are concatenated and cut into blocks of `seq_len` tokens. False: each record is
    a sample, truncated to `seq_len` tokens."""
    hidden_share: float = Field(gt=0, le=1)
    """Share of the tokens to predict: exactly this share of each sample, at least one."""
    mask_share: float = Field(ge=0, le=1)
    """Share of the hidden tokens that the mask token replaces."""
    random_share: float = Field(ge=0, le=1)
    """Share of the hidden tokens that random tokens replace."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.mask_share + self.random_share > 1:
            yield Problem(
                "task.random_share",
                f"must be at most 1 - mask_share = {1 - self.mask_share:g}, but is "
                f"{self.random_share:g}",
            )

    @override
    def column_specs(self) -> Sequence[Column]:
        return self.columns.specs()

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        from launcher.task._masked import MaskedLanguageModel, Masking

        return MaskedLanguageModel(
            tokenizer,
            self.columns.specs()[0],
            seq_len=self.seq_len,
            packing=self.packing,
            masking=Masking(self.hidden_share, self.mask_share, self.random_share),
        )
