"""Baselines for a model's bits per byte."""

from __future__ import annotations

import lzma

import numpy as np

from launcher.contracts import Records

_XZ_LIMIT = 2**20
"""Bytes of text given to xz at most: it compresses about 1.5 MB a second."""


def byte_references(records: Records) -> dict[str, float]:
    """Return bits per byte of two baselines on the column `text` of records; empty for no text.

    `unigram_bits_per_byte` is the entropy of the bytes' frequencies, the limit without context.
    `xz_bits_per_byte` is the size to which `xz -9` compresses the text, or its first MiB.
    """
    counts = np.zeros(256, dtype=np.int64)
    head = bytearray()
    for index in range(len(records)):
        content = records.record(index)["text"].encode("utf-8")
        counts += np.bincount(np.frombuffer(content, dtype=np.uint8), minlength=256)
        head += content[: _XZ_LIMIT - len(head)]
    if not head:
        return {}
    shares = counts[counts > 0] / counts.sum()
    return {
        "unigram_bits_per_byte": float(-(shares * np.log2(shares)).sum()),
        "xz_bits_per_byte": 8 * len(_xz(head)) / len(head),
    }


def _xz(content: bytearray) -> bytes:
    # Preset 9 reserves 64 MiB of dictionary, of which no text can use more than its own length.
    size = max(len(content), 4096)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": size}]
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)
