"""What simple methods make of a text: figures to hold a model's bits per byte against."""

from __future__ import annotations

import lzma

import numpy as np

from launcher.contracts import Records

_XZ_LIMIT = 4 * 2**20
"""Bytes of text given to xz at most: it packs about 1.5 MB a second."""


def byte_references(records: Records) -> dict[str, float]:
    """Bits per byte of two baselines on the column `text` of records; empty for no text.

    `unigram_bits_per_byte` is the entropy of the bytes' own frequencies: what is learned without
    any context. `xz_bits_per_byte` is the size that `xz -9` packs the text to, or the first 4 MiB
    of it.
    """
    content = "".join(records.record(index)["text"] for index in range(len(records))).encode(
        "utf-8"
    )
    if not content:
        return {}
    counts = np.bincount(np.frombuffer(content, dtype=np.uint8))
    shares = counts[counts > 0] / len(content)
    head = content[:_XZ_LIMIT]
    return {
        "unigram_bits_per_byte": float(-(shares * np.log2(shares)).sum()),
        "xz_bits_per_byte": 8 * len(_xz(head)) / len(head),
    }


def _xz(content: bytes) -> bytes:
    # Preset 9 reserves 64 MiB of dictionary, of which no text can use more than its own length.
    size = max(len(content), 4096)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": size}]
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)
