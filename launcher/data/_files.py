"""Reads text files, and decides which are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and the name by which an error calls it (a path, or `path:line`)."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is not text, and why.

    Attributes:
        path: The file.
        kind: In two words, to count by.
        message: `path: what is wrong, where, what to do`.
    """

    path: Path
    kind: str
    message: str


def read_document(path: Path) -> Document | Unreadable:
    r"""The text of a file, to the character as it stands there, but for a leading byte-order mark.

    Line ends are kept (`\r\n` stays two characters), so that what a model scores is what is on
    disk. A NUL byte is no text: it is the mark of a binary file, or of UTF-16.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        return Unreadable(path, "not readable", f"{path}: cannot be read: {error.strerror}")
    start = len(_BOM) if content.startswith(_BOM) else 0
    if len(content) == start:
        return Unreadable(path, "empty", f"{path}: is empty")
    try:
        text = content[start:].decode("utf-8") if start else content.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place(content, start, start + error.start)
        return Unreadable(
            path,
            "not UTF-8",
            f"{path}:{place}: byte 0x{content[start + error.start]:02x} is not UTF-8 "
            f"({error.reason}); convert the file to UTF-8",
        )
    if "\0" in text:
        place = _place(content, start, content.index(b"\0"))
        return Unreadable(
            path,
            "binary",
            f"{path}:{place}: a NUL byte: this is a binary file or UTF-16; convert it to UTF-8",
        )
    return Document(str(path), text)


def is_held_out(name: str, fraction: float) -> bool:
    """Whether a file goes to the validation set: a fixed function of its name.

    Args:
        name: The file's path below the folder of all files, with `/`; so neither the machine nor
            the current folder nor the other files matter.
        fraction: Share of all names that are held out, in [0, 1].
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _place(content: bytes, start: int, offset: int) -> str:
    """`line:column: byte offset`; what stands before the offset is valid UTF-8."""
    line_start = max(content.rfind(b"\n", 0, offset) + 1, start)
    line = content.count(b"\n", 0, offset) + 1
    column = len(content[line_start:offset].decode("utf-8")) + 1
    return f"{line}:{column} (byte {offset})"
