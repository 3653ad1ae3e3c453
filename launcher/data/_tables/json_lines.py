"""Records of JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import override

from launcher.data._tables.lines import LARGEST_RECORD, BadRecordError, LineTable, decode
from launcher.data._tables.sources import BOM
from launcher.errors import DataError


class JsonLinesTable(LineTable):
    """One JSON object per line; blank lines are left out."""

    @override
    def _rows(self, file: Any) -> Iterator[tuple[int, int, bytes]]:
        offset, line = 0, 0
        while content := file.readline(LARGEST_RECORD):
            line += 1
            place = f"{self._source.path}:{line}"
            if len(content) == LARGEST_RECORD:
                raise DataError(f"{place}: is longer than {LARGEST_RECORD:,} bytes")
            start = offset + (len(BOM) if line == 1 and content.startswith(BOM) else 0)
            offset += len(content)
            # Without the end of the line: its kind does not change the record.
            kept = content[start - offset + len(content) :].rstrip()
            if kept:
                yield start, line, kept

    @override
    def _parse(self, content: bytes, line: int) -> Mapping[str, Any]:
        return parse_object(content, f"{self._source.path}:{line}")


def parse_object(content: bytes, place: str) -> Mapping[str, Any]:
    """Return the JSON object of a line; raise BadRecordError with the place of what is wrong."""
    text = decode(content, place)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        hint = _hint(text)
        raise BadRecordError(f"{place}:{error.colno}: is not JSON: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"{place}:1: is not valid: {error}") from None
    if not isinstance(value, dict):
        raise BadRecordError(
            f"{place}:1: must be a JSON object, but is a {type(value).__name__}{_hint(text)}"
        )
    if "\\ud" in text.lower():
        _check_surrogates(value, place)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check_surrogates(value: Any, place: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecordError(
            f"{place}:1: \\u{ord(error.object[error.start]):04x} is half a character"
        ) from None


def _hint(text: str) -> str:
    if not text.lstrip().startswith("["):
        return ""
    return "; a JSON array becomes JSON Lines by: jq -c '.[]' FILE > FILE.jsonl"
