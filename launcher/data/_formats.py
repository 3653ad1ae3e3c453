"""Recognize files in other formats than text, and suggest a command that converts them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from shlex import quote

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    # Of the default level: its first three letters may begin a text.
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "ZIP",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"%PDF-": "PDF",
}
_SUFFIXES = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zip": "ZIP",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".pdf": "PDF",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
}
_UNPACK = {
    "gzip": "gunzip --keep {file}",
    "zstd": "unzstd {file}",
    "bzip2": "bunzip2 --keep {file}",
    "xz": "unxz --keep {file}",
    "ZIP": "unzip {file}",
}
# Formats that other sources read.
_SOURCES = {"Parquet": "parquet", "Arrow": "arrow"}
# Formats that are UTF-8 text: `data.allow_structured` accepts them.
STRUCTURED = frozenset({"JSON", "JSON Lines", "CSV"})
_SNIFFED_LINES = 2
_BOM = b"\xef\xbb\xbf"
_FIRST_OF_ARRAY = re.compile(r"\s*\[\s*(?=[\[{\"])")
_NEXT_OF_ARRAY = re.compile(r"\s*[,\]]\s*([{\]]|$)")
# A table has a header of names and several rows of the same number of fields.
_TABLE_ROWS = 5
_TABLE_FIELDS = {",": 3, ";": 3, "\t": 2}
_COLUMN = re.compile(r"[A-Za-z_][\w .-]{0,39}")


def format_of_name(path: Path) -> str | None:
    """Return the format of a file name's suffix, unless it is plain text."""
    return _SUFFIXES.get(path.suffix.lower())


def other_format(path: Path, head: bytes, *, structured: bool) -> tuple[str, str] | None:
    """Return a format other than plain text with a message, or None; `head` is the beginning."""
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    # A name alone does not make a file binary: an unpacked file may have kept its name.
    head = head.removeprefix(_BOM)
    found = found or _structured_format(format_of_name(path), head)
    if found is None or (structured and found in STRUCTURED):
        return None
    return (
        found,
        f"{path}: is a {found} file, but data=text reads plain text; {_cure(path, found, head)}",
    )


def table_columns(head: bytes) -> list[str]:
    """Return the names of the columns if the beginning of a text looks like CSV with a header."""
    text = head.removeprefix(_BOM).decode("utf-8", "replace")
    for delimiter, fewest in _TABLE_FIELDS.items():
        try:
            # The last row may be incomplete.
            rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter))[:-1]
        except csv.Error:
            continue
        names = rows[0] if rows else []
        regular = len(rows) >= _TABLE_ROWS and {len(row) for row in rows} == {len(names)}
        # Distinct names do not occur in lists of numbers, nor in most prose and code.
        named = len(set(names)) == len(names) and all(_COLUMN.fullmatch(name) for name in names)
        if len(names) >= fewest and regular and named:
            return names
    return []


def _structured_format(by_name: str | None, head: bytes) -> str | None:
    if head and by_name in {"JSON Lines", "CSV"}:
        return by_name
    if _is_json_lines(head):
        return "JSON Lines"
    text = head.decode("utf-8", "replace")
    begins = _FIRST_OF_ARRAY.match(text)
    if begins is None or by_name == "JSON":
        return "JSON" if begins else None
    # Under another name, such as that of a script, only an array of objects is data.
    first, end = _first_object(text[begins.end() :])
    return "JSON" if first and _NEXT_OF_ARRAY.match(text, begins.end() + end) else None


def _first_object(text: str) -> tuple[dict[str, object], int]:
    """Return the JSON object at the beginning of a text, and its length."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return {}, 0
    return (value, end) if isinstance(value, dict) else ({}, 0)


def _is_json_lines(head: bytes) -> bool:
    if not head.startswith(b"{"):
        return False
    # One line alone may be a JSON document, such as a settings file in a corpus of code.
    lines = head.splitlines()[:_SNIFFED_LINES]
    return len(lines) == _SNIFFED_LINES and all(_json_object(line) for line in lines)


def _json_object(line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _cure(path: Path, name: str, head: bytes) -> str:
    file, text = quote(str(path)), quote(str(path.with_suffix(".txt")))
    if name in _UNPACK:
        return f"unpack it: {_UNPACK[name].format(file=file)}"
    if name in _SOURCES:
        return f"write data={_SOURCES[name]}"
    if name not in STRUCTURED:
        return "write its text to a .txt file"
    allow = "(data.allow_structured=true reads it as it is, syntax included)"
    first = head.split(b"\n", 1)[0]
    if name == "JSON Lines":
        column = _text_column(_text_keys(_json_object(first)))
        return f"write data=jsonl{_mapped(column)} {allow}"
    if name == "JSON":
        content = head.decode("utf-8", "replace")
        begins = _FIRST_OF_ARRAY.match(content)
        found, _ = _first_object(content[begins.end() :] if begins else "")
        column = f".{_text_column(_text_keys(found))}" if found else ""
        return f"convert it: jq -r '.[]{column}' {file} > {text} {allow}"
    preset, delimiter = ("tsv", "\t") if path.suffix.lower() == ".tsv" else ("csv", ",")
    header = next(csv.reader([first.decode("utf-8", "replace")], delimiter=delimiter), [])
    return f"write data={preset}{_mapped(_text_column(header))} {allow}"


def _mapped(column: str) -> str:
    return "" if column == "text" else f" task.columns.text={quote(column)}"


def _text_keys(record: dict[str, object]) -> list[str]:
    return [key for key, value in record.items() if isinstance(value, str)]


def _text_column(names: list[str]) -> str:
    return next((name for name in ("text", "content") if name in names), (names or ["text"])[-1])
