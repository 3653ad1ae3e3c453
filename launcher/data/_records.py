"""Records that are whole texts, one column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import xxhash
from typing_extensions import override

from launcher.contracts import Records
from launcher.data._files import Document


class TextRecords(Records):
    """Texts in memory: each is one record with the column `text`.

    Args:
        documents: The texts, taken over without a copy.
    """

    columns = ("text",)

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = list(documents)
        hashed = xxhash.xxh3_128()
        for document in self._documents:
            content = document.text.encode("utf-8")
            # With the length in front, no two lists of texts run together to the same bytes.
            hashed.update(f"{len(content)} ".encode())
            hashed.update(content)
        self.fingerprint = hashed.hexdigest()

    @override
    def __len__(self) -> int:
        return len(self._documents)

    @override
    def record(self, index: int) -> Mapping[str, str]:
        return {"text": self._documents[index].text}

    @override
    def describe(self, index: int) -> str:
        return self._documents[index].name
