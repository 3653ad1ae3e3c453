from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typing_extensions import override

from launcher.contracts import Tokenizer


class Letters(Tokenizer):
    """Numbers each character by its code; 0 ends a text."""

    eos_id = 0
    vocab_size = 128

    @override
    def encode(self, text: str) -> npt.NDArray[np.int32]:
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int32)

    @override
    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i).decode("ascii")

    @override
    def num_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        return int(np.count_nonzero(ids))

    @override
    def save(self, folder: Path) -> None:
        (folder / "letters.txt").write_text("letters")


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture(name="small_llama")
def decoder() -> Any:
    import torch

    from tests.networks import small_llama

    torch.manual_seed(0)
    return small_llama(
        vocab_size=128,
        num_hidden_layers=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=0,
    )
