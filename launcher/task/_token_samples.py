"""Samples for predicting the next token: packed blocks, or each text by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from launcher.contracts import MicroBatch, Samples
from launcher.errors import DataError
from launcher.task._token_stream import TokenStream

# The label of a position without a target.
NO_TARGET = -100


class TokenSamples(Samples, ABC):
    """Samples whose labels are their inputs shifted by one token.

    Attributes:
        bytes_per_target: UTF-8 bytes of the targets, over the number of targets; 0 if the tokenizer
            loses text. Exact for byte-level tokenizers.
    """

    # Shifted here and not in the model, as transformers does it: then the last token of a sample
    # has a target, too.

    def __init__(self, stream: TokenStream, layout: str, num_targets: int, num_bytes: int) -> None:
        self.bytes_per_target = 0.0 if stream.lossy else num_bytes / num_targets
        # With the layout: the same tokens in other samples are other data for a resumed run.
        hashed = stream.hashed.copy()
        hashed.update(f"{stream.tokens.dtype} {layout}".encode())
        hashed.update(stream.starts.data)
        self.fingerprint = hashed.hexdigest()
        self._stream = stream

    @override
    def describe(self, index: int) -> str:
        return self._stream.describe(self._first_target(index))

    def _padding(self, width: int) -> MicroBatch:
        row = torch.full((1, width), self._stream.tokenizer.eos_id)
        return MicroBatch({"input_ids": row, "labels": torch.full_like(row, NO_TARGET)}, 0, ())

    @abstractmethod
    def _first_target(self, index: int) -> int:
        """Return the position of a sample's first target in the stream."""


class PackedSamples(TokenSamples):
    """Blocks of `seq_len` targets from the stream, without the incomplete last one."""

    def __init__(self, stream: TokenStream, seq_len: int) -> None:
        self._seq_len = seq_len
        self._len = (len(stream.tokens) - 1) // seq_len
        if self._len == 0:
            raise DataError(
                f"{len(stream.tokens) - 1} tokens in {_named(stream)}, but one sample needs "
                f"task.seq_len={seq_len}: give more text, a smaller task.seq_len, or "
                "task.packing=false"
            )
        # A broadcast view of one number: a corpus has millions of blocks.
        self.lengths = np.broadcast_to(np.int64(seq_len), self._len)
        end = self._len * seq_len
        ragged = stream.tokens[end + 1 :]
        num_bytes = stream.num_bytes - stream.tokenizer.num_bytes(ragged)
        super().__init__(stream, f"blocks {seq_len}", end, num_bytes)
        # Views of the stream, which may be larger than memory: only batches are copied.
        windows = np.lib.stride_tricks.sliding_window_view(stream.tokens, seq_len + 1)
        self._blocks = windows[:end:seq_len]

    @override
    def __len__(self) -> int:
        return self._len

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return len(indices) * self._seq_len

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        del draw
        if not indices:
            return self._padding(self._seq_len)
        blocks = torch.from_numpy(self._blocks[np.asarray(indices)].astype(np.int64))
        inputs = {"input_ids": blocks[:, :-1].contiguous(), "labels": blocks[:, 1:].contiguous()}
        return MicroBatch(inputs, self.num_targets(indices), indices)

    @override
    def _first_target(self, index: int) -> int:
        return index * self._seq_len + 1


class UnpackedSamples(TokenSamples):
    """Samples of up to `seq_len` targets from each text; the last one of a text may be short."""

    def __init__(self, stream: TokenStream, seq_len: int) -> None:
        if not stream.names:
            raise DataError(f"no tokens in {_named(stream)}: give some text")
        # A text's targets are its tokens and the end token after it.
        targets = stream.text_ends + 1 - stream.text_starts
        counts = -(-targets // seq_len)
        first = np.cumsum(counts) - counts
        offsets = (np.arange(counts.sum()) - np.repeat(first, counts)) * seq_len
        self._starts: npt.NDArray[np.int64] = np.repeat(stream.text_starts, counts) - 1 + offsets
        self.lengths = np.minimum(np.repeat(targets, counts) - offsets, seq_len)
        super().__init__(stream, f"pieces {seq_len}", int(targets.sum()), stream.num_bytes)

    @override
    def __len__(self) -> int:
        return len(self._starts)

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return int(self.lengths[np.asarray(indices, dtype=np.intp)].sum())

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        del draw
        if not indices:
            return self._padding(1)
        chosen = np.asarray(indices)
        lengths = self.lengths[chosen, None]
        places = np.arange(lengths.max() + 1)
        # Tokens past the end of a sample, or of the stream, are masked below.
        tokens = self._stream.tokens.take(self._starts[chosen, None] + places, mode="clip")
        inside = places[:-1] < lengths
        # Attention is causal, so that no target sees the padding on its right; any id will do.
        input_ids = np.where(inside, tokens[:, :-1], self._stream.tokenizer.eos_id)
        labels = np.where(inside, tokens[:, 1:].astype(np.int64), NO_TARGET)
        inputs = {
            "input_ids": torch.from_numpy(input_ids.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }
        return MicroBatch(inputs, int(lengths.sum()), indices)

    @override
    def _first_target(self, index: int) -> int:
        return int(self._starts[index]) + 1


def _named(stream: TokenStream) -> str:
    match len(stream.names):
        case 0:
            return "no records"
        case 1:
            return f"the one record, {stream.names[0]}"
        case count:
            return f"{count} records, from {stream.names[0]} to {stream.names[-1]}"
