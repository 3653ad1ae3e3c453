"""Records that are texts, one column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import xxhash
from typing_extensions import override

from launcher.contracts import Records
from launcher.data._files import FilePart, limit_size


class TextRecords(Records):
    """Parts of files, each a record with the column `text`.

    Args:
        parts: The parts; large ones become several records.
    """

    columns = ("text",)

    def __init__(self, parts: Iterable[FilePart]) -> None:
        # The parts of a file are read again for each use: the page cache keeps what fits.
        self._parts = [piece for part in parts for piece in limit_size(part)]
        hashed = xxhash.xxh3_128()
        for part in self._parts:
            # With the length in front, no two lists of texts have the same bytes.
            hashed.update(f"{len(part)} ".encode())
            hashed.update(part.read().encode("utf-8"))
        self.fingerprint = hashed.hexdigest()

    @override
    def __len__(self) -> int:
        return len(self._parts)

    @override
    def record(self, index: int) -> Mapping[str, str]:
        return {"text": self._parts[index].read()}

    @override
    def describe(self, index: int) -> str:
        return self._parts[index].name
