"""Recognize files in other formats than text, and suggest a command that converts them."""

from __future__ import annotations

import csv
import json
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
STRUCTURED = frozenset({"JSON Lines", "CSV"})
"""Formats that are UTF-8 text themselves: `data.allow_structured` accepts them as such."""
_SNIFFED_LINES = 2


def format_of_name(path: Path) -> str | None:
    """Return the format that a file's name ends in, if it is not plain text."""
    return _SUFFIXES.get(path.suffix.lower())


def other_format(path: Path, head: bytes, *, structured: bool) -> tuple[str, str] | None:
    """Return a format that is not plain text and the message that refuses it, or None.

    Args:
        path: The file.
        head: Its beginning.
        structured: Accept JSON Lines and CSV.
    """
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    # A name alone does not make a file binary: an unpacked file may have kept its name.
    by_name = format_of_name(path)
    if found is None and by_name in STRUCTURED and head:
        found = by_name
    if found is None and _is_json_lines(head):
        found = "JSON Lines"
    if found is None or (structured and found in STRUCTURED):
        return None
    return (
        found,
        f"{path}: is a {found} file, but data=text reads plain text; {_cure(path, found, head)}",
    )


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
    if name not in STRUCTURED:
        return "write its text to a .txt file"
    allow = "(data.allow_structured=true reads it as it is, syntax included)"
    first = head.split(b"\n", 1)[0]
    if name == "JSON Lines":
        keys = [key for key, value in _json_object(first).items() if isinstance(value, str)]
        column = _text_column(keys)
        return f"convert it: jq -r .{column} {file} > {text} {allow}"
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    header = next(csv.reader([first.decode("utf-8", "replace")], delimiter=delimiter), [])
    code = (
        "import csv, sys; [print(r[sys.argv[1]]) for r in csv.DictReader(sys.stdin, "
        f"delimiter={delimiter!r})]"
    )
    column = _text_column(header)
    return f'convert it: python -c "{code}" {quote(column)} < {file} > {text} {allow}'


def _text_column(names: list[str]) -> str:
    """Return the column that most likely holds the text."""
    return next((name for name in ("text", "content") if name in names), (names or ["text"])[-1])
