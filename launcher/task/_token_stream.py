"""All tokens of the texts in one array."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from launcher.contracts import Column, Records, Tokenizer
from launcher.errors import DataError
from launcher.task._columns import TEXT

Tokens = npt.NDArray[np.integer[Any]]

_log = logging.getLogger("trainctl.task")

# Bytes of tokens that are kept in memory; more are in a file without a name.
_IN_MEMORY = 2**26
_PROGRESS_S = 2.0
_CHECKED_RECORD = 2**16
# Characters of all texts that are decoded again to find a lossy tokenizer.
_CHECKED = 2**20


@dataclass(frozen=True, slots=True)
class TokenStream:
    """All texts in one array: BOS token, text, end token, BOS token, text, end token, ….

    A text is one record, or several of which each continues the previous one. Without a BOS token
    the stream begins with an end token.

    Attributes:
        tokens: Shape (T,); 16 bits each if the vocabulary allows it.
        starts: Position of each record's first token. Shape (D,), int64.
        text_starts: Position of each text's first token. Shape (T,), int64.
        text_ends: Position of the end token after each text. Shape (T,), int64.
        names: The records' sources.
        num_bytes: Bytes of UTF-8 in the texts.
        tokenizer: The tokenizer of the tokens.
        hashed: Hash of the tokens.
        lossy: The first difference between a text and its decoded tokens, if any.
    """

    tokens: Tokens
    starts: npt.NDArray[np.int64]
    text_starts: npt.NDArray[np.int64]
    text_ends: npt.NDArray[np.int64]
    names: Sequence[str]
    num_bytes: int
    tokenizer: Tokenizer
    hashed: xxhash.xxh3_128
    lossy: str | None

    def describe(self, position: int) -> str:
        """Return the source of a token: record, line and byte, from 1."""
        record = max(int(np.searchsorted(self.starts, position, side="right")) - 1, 0)
        before = self.tokens[self.starts[record] : position]
        line = self.tokenizer.decode(before.tolist()).count("\n") + 1
        byte = self.tokenizer.num_bytes(before) + 1
        return f"{self.names[record]}, line {line} (byte {byte})"


def read_tokens(
    records: Records, tokenizer: Tokenizer, *, bos_id: int | None, text: Column = TEXT
) -> TokenStream:
    """Encode a column of records, without empty texts."""
    # 16 bits hold most vocabularies in half the memory.
    dtype: type[np.integer[Any]] = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    with closing(_Tokens(dtype)) as tokens:
        return _read_tokens(records, tokenizer, tokens, bos_id=bos_id, text=text)


def _read_tokens(
    records: Records, tokenizer: Tokenizer, tokens: _Tokens, *, bos_id: int | None, text: Column
) -> TokenStream:
    texts = _Texts(tokens, tokenizer.eos_id, bos_id)
    names: list[str] = []
    starts: list[int] = []
    num_bytes = 0
    roundtrip = _RoundTrip(tokenizer)
    shown = time.monotonic()
    for index in range(len(records)):
        content = text.read(records, index)
        ids = tokenizer.encode(content)
        if not records.continues(index):
            texts.end()
        if len(ids) == 0:
            continue
        names.append(records.describe(index))
        roundtrip.check(content, ids, names[-1])
        texts.begin()
        starts.append(tokens.length)
        tokens.append(ids)
        num_bytes += _utf8_length(content)
        # By time, so that small data sets stay quiet.
        if time.monotonic() - shown > _PROGRESS_S:
            shown = time.monotonic()
            _log.info(
                "encoded %d of %d records (%d MB)", index + 1, len(records), num_bytes // 10**6
            )
    texts.end()
    return TokenStream(
        tokens=tokens.array(),
        starts=np.array(starts, dtype=np.int64),
        text_starts=np.array(texts.starts, dtype=np.int64),
        text_ends=np.array(texts.ends, dtype=np.int64),
        names=names,
        num_bytes=num_bytes,
        tokenizer=tokenizer,
        hashed=tokens.hashed,
        lossy=roundtrip.lossy,
    )


class _Tokens:
    """Growing array that moves to a temporary file before it fills the memory."""

    def __init__(self, dtype: type[np.integer[Any]]) -> None:
        self.length = 0
        # Updated on append: reading the file again would bring all of it into memory.
        self.hashed = xxhash.xxh3_128()
        self._dtype = np.dtype(dtype)
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - its map outlives this object

    def append(self, ids: npt.NDArray[np.int32] | Sequence[int]) -> None:
        content = np.asarray(ids, dtype=self._dtype).tobytes()
        self.hashed.update(content)
        try:
            self._file.write(content)
        except OSError as error:
            raise DataError(
                f"the tokens do not fit into {tempfile.gettempdir()} ({error.strerror}); set "
                "TMPDIR to a folder with more space"
            ) from error
        self.length += len(ids)

    def array(self) -> Tokens:
        file = self._file
        if self.length * self._dtype.itemsize <= _IN_MEMORY:
            file.seek(0)
            return np.frombuffer(file.read(), dtype=self._dtype)
        file.flush()
        # The map keeps the file, which has no name, as long as the array exists.
        return np.memmap(file, dtype=self._dtype, mode="r", shape=(self.length,))

    def close(self) -> None:
        self._file.close()


class _Texts:
    """Adds the special tokens around texts, which may have several records."""

    def __init__(self, tokens: _Tokens, eos_id: int, bos_id: int | None) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self._tokens = tokens
        self._eos_id = eos_id
        self._before = [] if bos_id is None else [bos_id]
        if not self._before:
            tokens.append([eos_id])

    def begin(self) -> None:
        """Begin a text unless one has begun."""
        if len(self.starts) == len(self.ends):
            self._tokens.append(self._before)
            self.starts.append(self._tokens.length)

    def end(self) -> None:
        """End the current text, if any."""
        if len(self.starts) > len(self.ends):
            self.ends.append(self._tokens.length)
            self._tokens.append([self._eos_id])


class _RoundTrip:
    """Compares the first texts with their decoded tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.lossy: str | None = None
        self._tokenizer = tokenizer
        self._left = _CHECKED

    def check(self, text: str, ids: npt.NDArray[np.int32], name: str) -> None:
        if self.lossy is not None or self._left <= 0:
            return
        # Decoding all of a long record would take as long as encoding it.
        if len(text) > _CHECKED_RECORD:
            text = text[:_CHECKED_RECORD]
            ids = self._tokenizer.encode(text)
        self._left -= len(text)
        decoded = self._tokenizer.decode(ids.tolist())
        if decoded != text:
            same = zip(text, decoded, strict=False)
            at = next((i for i, (a, b) in enumerate(same) if a != b), min(len(text), len(decoded)))
            self.lossy = f"{name}: {text[at : at + 20]!r} became {decoded[at : at + 20]!r}"


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
