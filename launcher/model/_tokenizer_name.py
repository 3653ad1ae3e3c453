"""Tokenizers by name; loads without NumPy, which only the live tokenizers need."""

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
    """Build the tokenizer of a name, and check that it fits the network.

    Args:
        name: `byt5`, or a local folder.
        vocab_size: Rows of the network's embedding table.

    Raises:
        DataError: The folder holds no tokenizer, or one with ids that the network has no row for.
    """
    from launcher.model._tokenizers import ByteTokenizer, FolderTokenizer

    path = Path(name).expanduser()
    tokenizer: Tokenizer = ByteTokenizer() if name == BYT5 else FolderTokenizer(path)
    check_ids(name, tokenizer.vocab_size, vocab_size)
    return tokenizer
