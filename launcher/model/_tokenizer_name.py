"""Build tokenizers by name; imports without NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launcher.model._folder import check_ids

if TYPE_CHECKING:
    from launcher.contracts import Tokenizer

# The name of the tokenizer that needs no files.
BYT5 = "byt5"
# Padding, end and unknown, 256 bytes, 125 sentinels.
BYT5_VOCAB_SIZE = 384


def build_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """Build the tokenizer of a name (`byt5` or a local folder), and check its ids."""
    from launcher.model._tokenizers import ByteTokenizer, FolderTokenizer

    path = Path(name).expanduser()
    tokenizer: Tokenizer = ByteTokenizer() if name == BYT5 else FolderTokenizer(path)
    check_ids(name, tokenizer.vocab_size, vocab_size)
    return tokenizer
