"""All tokens of some texts in one compact array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.contracts import Records, Tokenizer

Tokens = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class TokenStream:
    """End token, document, end token, document, …, end token.

    Attributes:
        tokens: Shape (T,); 16 bits each where the vocabulary allows.
        starts: Place of each document's first token. Shape (D,), int64.
        names: The documents' names.
        num_bytes: Bytes of UTF-8 in the texts.
        tokenizer: What made the tokens.
    """

    tokens: Tokens
    starts: npt.NDArray[np.int64]
    names: Sequence[str]
    num_bytes: int
    tokenizer: Tokenizer

    def describe(self, position: int) -> str:
        """Where a token comes from: document, and line and byte in it, both from 1.

        Args:
            position: The token's place in the stream.
        """
        document = max(int(np.searchsorted(self.starts, position, side="right")) - 1, 0)
        before = self.tokens[self.starts[document] : position]
        line = self.tokenizer.decode(before.tolist()).count("\n") + 1
        byte = self.tokenizer.num_bytes(before) + 1
        return f"{self.names[document]}, line {line} (byte {byte})"


def read_tokens(records: Records, tokenizer: Tokenizer) -> TokenStream:
    """Encode the column `text` of records; empty texts are left out."""
    dtype: type[np.integer[Any]] = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    end: Tokens = np.array([tokenizer.eos_id], dtype=dtype)
    pieces: list[Tokens] = [end]
    names: list[str] = []
    lengths: list[int] = []
    num_bytes = 0
    for index in range(len(records)):
        text = records.record(index)["text"]
        ids = tokenizer.encode(text).astype(dtype)
        if len(ids) == 0:
            continue
        pieces += [ids, end]
        names.append(records.describe(index))
        lengths.append(len(ids))
        num_bytes += _utf8_length(text)
    # Each document is one place further than the lengths before it say, for the end token before
    # it.
    starts = np.cumsum([1, *(length + 1 for length in lengths[:-1])], dtype=np.int64)[: len(names)]
    return TokenStream(np.concatenate(pieces), starts, names, num_bytes, tokenizer)


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
