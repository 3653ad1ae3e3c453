"""Task of masked language modelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Column, Head, MicroBatch, Records, Samples, Tokenizer
from launcher.errors import DataError
from launcher.task._classification import encode
from launcher.task._export import export
from launcher.task._padded import PaddedSamples, Ragged
from launcher.task._token_metrics import TokenTask
from launcher.task._token_samples import NO_TARGET


@dataclass(frozen=True, slots=True)
class Masking:
    """Shares of hidden tokens, and of those that are masked or random; see `MaskedLM`."""

    hidden: float
    masked: float
    random: float


class MaskedLanguageModel(TokenTask):
    """Predicts hidden tokens."""

    head = Head("masked_lm")

    def __init__(
        self,
        tokenizer: Tokenizer,
        text: Column,
        *,
        seq_len: int,
        packing: bool,
        masking: Masking,
    ) -> None:
        if tokenizer.mask_id is None:
            raise DataError(
                "the tokenizer has no mask token, which task=masked_lm needs; name one in its "
                "tokenizer_config.json, or choose another model"
            )
        self.columns = (text.name,)
        self._tokenizer, self._text = tokenizer, text
        self._seq_len, self._packing, self._masking = seq_len, packing, masking

    @override
    def samples(self, records: Records) -> Samples:
        # Packed texts are not truncated: each is cut into blocks afterwards.
        longest = 2**31 - 1 if self._packing else self._seq_len
        rows = encode(records, [self._text], self._tokenizer, longest)["input_ids"]
        sources = np.arange(len(records))
        if self._packing:
            count = len(rows.values) // self._seq_len
            if not count:
                raise DataError(
                    f"{len(rows.values)} tokens, but a sample needs task.seq_len={self._seq_len}: "
                    "give more text, or task.packing=false"
                )
            ends = (np.arange(count, dtype=np.int64) + 1) * self._seq_len
            # The record in which a block begins.
            sources = np.searchsorted(rows.ends, ends - self._seq_len, side="right")
            rows = Ragged(rows.values[: ends[-1]], ends, rows.pad)
        return MaskedSamples(records, rows, sources, self._tokenizer, self._masking)

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    @override
    def export(self, module: nn.Module, folder: Path) -> None:
        export(module, self._tokenizer, folder)


class MaskedSamples(PaddedSamples):
    """Rows of tokens; which are hidden is a function of draw and sample."""

    def __init__(
        self,
        records: Records,
        rows: Ragged,
        sources: npt.NDArray[np.int64],
        tokenizer: Tokenizer,
        masking: Masking,
    ) -> None:
        special = np.array(sorted(tokenizer.special_ids))
        plain = ~np.isin(rows.values, special)
        starts = rows.ends - rows.lengths
        total = np.concatenate([[0], np.cumsum(plain)])
        counts = total[rows.ends] - total[starts]
        # A fixed number and not one per token: the targets of a window must be known from its
        # samples alone, before any rank draws.
        targets = np.minimum(np.maximum(np.rint(masking.hidden * counts), 1), counts)
        super().__init__(
            records,
            {"input_ids": rows},
            values={},
            padding={"labels": torch.full((1, 1), NO_TARGET)},
            targets=targets.astype(np.int64),
            sources=sources,
        )
        self.fingerprint = f"{self.fingerprint} {masking}"
        self._special, self._masking = special, masking
        self._tokenizer = tokenizer

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        batch = super().micro_batch(indices, draw)
        if not indices:
            return batch
        ids = batch.inputs["input_ids"].numpy().copy()
        labels = np.full_like(ids, NO_TARGET)
        for row, index in enumerate(indices):
            rng = np.random.default_rng([draw, index])
            length = int(self.lengths[index])
            places = np.flatnonzero(~np.isin(ids[row, :length], self._special))
            hidden = rng.permutation(places)[: self._targets[index]]
            labels[row, hidden] = ids[row, hidden]
            kind = rng.random(len(hidden))
            masked = kind < self._masking.masked
            other = ~masked & (kind < self._masking.masked + self._masking.random)
            drawn = rng.integers(0, self._tokenizer.vocab_size, len(hidden))
            ids[row, hidden[masked]] = self._tokenizer.mask_id
            ids[row, hidden[other]] = drawn[other]
        inputs = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        return MicroBatch({**batch.inputs, **inputs}, batch.num_targets, indices)
