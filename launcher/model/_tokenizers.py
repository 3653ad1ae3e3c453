"""Tokenizers: plain bytes, and those of local folders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from launcher.contracts import Tokenizer
from launcher.errors import DataError
from launcher.model._folder import short
from launcher.model._tokenizer_name import BYT5_VOCAB_SIZE

_FIRST_BYTE = 3
_END_OF_BYTES = _FIRST_BYTE + 256


class ByteTokenizer(Tokenizer):
    """Bytes of UTF-8, numbered as ByT5 does: byte + 3, after padding, end and unknown.

    Unlike ByT5's tokenizer it reads `</s>` in a text as four bytes, not as the end token.

    Source: Xue et al. 2022, arXiv:2105.13626, section 3.1; transformers' ByT5Tokenizer.
    """

    eos_id = 1
    pad_id = 0
    # ByT5's first sentinel, `<extra_id_0>`: it replaces hidden text there, too.
    mask_id = _END_OF_BYTES
    vocab_size = BYT5_VOCAB_SIZE

    @override
    def encode(self, text: str) -> npt.NDArray[np.int32]:
        values = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        return values + np.int32(_FIRST_BYTE)

    @override
    def decode(self, ids: Sequence[int]) -> str:
        # A sequence may begin or end within a character, which is dropped as by ByT5.
        values = np.asarray(ids, dtype=np.int64)
        values = values[(values >= _FIRST_BYTE) & (values < _END_OF_BYTES)] - _FIRST_BYTE
        return values.astype(np.uint8).tobytes().decode("utf-8", errors="ignore")

    @override
    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        return int(np.count_nonzero((ids >= _FIRST_BYTE) & (ids < _END_OF_BYTES)))

    @override
    def save(self, folder: Path) -> None:
        from transformers import ByT5Tokenizer

        ByT5Tokenizer().save_pretrained(folder)


class FolderTokenizer(Tokenizer):
    """Tokenizer of a local folder, loaded by AutoTokenizer without running code in the folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            # A damaged folder raises any of many exception types.
            raise DataError(
                f"{folder}: no tokenizer can be loaded from here: {short(error)}"
            ) from error
        eos_id = self._tokenizer.eos_token_id
        if eos_id is None:
            raise DataError(
                f"{folder}: the tokenizer has no eos_token, which ends each record; name one in "
                "tokenizer_config.json"
            )
        self.eos_id = int(eos_id)
        self.vocab_size = len(self._tokenizer)
        self.bos_id = self._tokenizer.bos_token_id
        self.mask_id = self._tokenizer.mask_token_id
        template = self._tokenizer.chat_template
        # Several templates have names.
        self.chat_template = template.get("default") if isinstance(template, dict) else template
        # Tried out, because there is no attribute for it: some have a BOS token that they never
        # add.
        self.adds_bos = self.bos_id is not None and self._tokenizer("a").input_ids[:1] == [
            self.bos_id
        ]

    @override
    def encode(self, text: str) -> npt.NDArray[np.int32]:
        # Special tokens that occur in the text stay text: data must not be able to end a sample.
        # `verbose` would warn of texts longer than the model, which are divided afterwards.
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        return np.asarray(encoded["input_ids"], dtype=np.int32)

    @property
    @override
    def special_ids(self) -> Collection[int]:
        return {self.eos_id, *map(int, self._tokenizer.all_special_ids)}

    @property
    @override
    def special_tokens(self) -> Mapping[str, str]:
        tokens: Mapping[str, Any] = self._tokenizer.special_tokens_map
        return {name: value for name, value in tokens.items() if isinstance(value, str)}

    @override
    def encode_rendered(self, text: str) -> tuple[Sequence[int], Sequence[int]]:
        if not self._tokenizer.is_fast:
            raise DataError(
                "the tokenizer does not know where in a text its tokens are; chats need one with a "
                "tokenizer.json"
            )
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]

    @property
    @override
    def pad_id(self) -> int:
        if self._tokenizer.pad_token is None:
            # Stored in the export, too, whose rows a pipeline pads.
            self._tokenizer.pad_token = self._tokenizer.eos_token
        return int(self._tokenizer.pad_token_id)

    @override
    def encode_inputs(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> Mapping[str, Sequence[Sequence[int]]]:
        encoded = self._tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}

    @override
    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    @override
    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        return len(self.decode(ids.tolist()).encode("utf-8"))

    @override
    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)
