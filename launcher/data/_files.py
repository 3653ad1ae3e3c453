"""Parts of text files, read on access; choice of the held-out set."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from typing_extensions import override

from launcher.contracts import Records
from launcher.data._formats import other_format
from launcher.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader


# A byte-order mark, which some editors write in front of a text: the model would learn it.
_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**20
# Bytes of the largest record: the memory of a run must not depend on the size of a file.
_LARGEST = 4 * 2**20


@dataclass(frozen=True, slots=True)
class FilePart:
    """Part of a text file: bytes `start` to `end`, from line `line` (from 1).

    Attributes:
        label: Name of the file in messages.
        continues: True if it continues the text of the part before it.
    """

    path: Path
    start: int
    end: int
    label: str
    line: int = 1
    continues: bool = False

    @property
    def name(self) -> str:
        """Name of the file, with the first line if it is not line 1."""
        return self.label if self.line == 1 else f"{self.label}:{self.line}"

    def __len__(self) -> int:
        return self.end - self.start

    def read(self) -> str:
        """Return the text; raise DataError if the file has changed."""
        # A file that changes during the run would not match the fingerprint in its checkpoints.
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                content = file.read(len(self))
                if len(content) == len(self):
                    return content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: changed since the run started: {error}") from error
        raise DataError(f"{self.path}: became shorter since the run started")


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that `data=text` cannot read; `kind` is the problem in two words, to count by."""

    path: Path
    kind: str
    message: str


def scan_file(
    path: Path, *, label: str | None = None, structured: bool = True
) -> FilePart | BadFile:
    """Check that a file is text in UTF-8, in constant memory."""
    # Every character is kept, `\r\n` too, except a leading byte-order mark: scores are those of the
    # file on disk. A NUL byte is an error, because it comes from a binary file or from UTF-16.
    try:
        with path.open("rb") as file:
            head = file.read(_CHUNK)
            if found := other_format(path, head, structured=structured):
                return BadFile(path, *found)
            start = len(_BOM) if head.startswith(_BOM) else 0
            if len(head) == start:
                return BadFile(path, "empty", f"{path}: is empty")
            file.seek(start)
            if bad := _find_bad_byte(path, file, start):
                return bad
            return FilePart(path, start, file.tell(), label or str(path))
    except OSError as error:
        return BadFile(path, "not readable", f"{path}: cannot be read: {error.strerror}")


def split_part(part: FilePart, fraction: float) -> tuple[FilePart, FilePart]:
    """Split a part in two, at a line start if possible; `fraction` is the share of the end."""
    with _mapped(part.path) as content:
        cut = part.start + min(max(1, round(len(part) * (1 - fraction))), len(part))
        # From one byte before the cut: a line may begin exactly there.
        after = content.find(b"\n", cut - 1, part.end) + 1
        before = content.rfind(b"\n", part.start, cut) + 1
        start = after if 0 < after < part.end else before or _next_character(content, cut, part.end)
        line = part.line + _count_lines(content, part.start, start)
    return replace(part, end=start), replace(part, start=start, line=line)


def limit_size(part: FilePart, largest: int = _LARGEST) -> Iterator[FilePart]:
    """Split a part into parts of at most `largest` bytes, at line starts if possible."""
    if len(part) <= largest:
        yield part
        return
    with _mapped(part.path) as content:
        start, line = part.start, part.line
        while start < part.end:
            end = min(start + largest, part.end)
            if end < part.end:
                newline = content.rfind(b"\n", start, end) + 1
                # A longer line is cut within the line.
                end = newline or _next_character(content, end, part.end)
            continues = part.continues or start > part.start
            yield replace(part, start=start, end=end, line=line, continues=continues)
            line += _count_lines(content, start, end)
            start = end


def is_held_out(name: str, fraction: float) -> bool:
    """Return True if a file, by its path below the common folder, belongs to the validation set."""
    # A function of the name alone: a file stays in its set when others are added, and on every
    # machine. A hash, because similar names must spread evenly; names need not be UTF-8.
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _find_bad_byte(path: Path, file: BufferedReader, start: int) -> BadFile | None:
    """Read a file to its end; return the first byte that is not text, if any."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = start
    while True:
        chunk = file.read(_CHUNK)
        # The beginning of a character that the end of the previous chunk has cut.
        pending = decoder.getstate()[0]
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            bad = offset - len(pending) + error.start
            place, byte = _place(file, start, bad)
            return BadFile(
                path,
                "not UTF-8",
                f"{path}:{place}: byte 0x{byte:02x} is not UTF-8 ({error.reason}); convert the "
                "file to UTF-8",
            )
        if (nul := chunk.find(b"\0")) >= 0:
            place, _ = _place(file, start, offset + nul)
            return BadFile(
                path,
                "binary",
                f"{path}:{place}: a NUL byte: this is a binary file or UTF-16; convert it to UTF-8",
            )
        if not chunk:
            return None
        offset += len(chunk)


def _place(file: BufferedReader, start: int, offset: int) -> tuple[str, int]:
    """Return `line:column (byte offset)` and the byte there, after valid UTF-8."""
    with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        line_start = max(content.rfind(b"\n", 0, offset) + 1, start)
        line = _count_lines(content, 0, offset) + 1
        column = len(content[line_start:offset].decode("utf-8")) + 1
        return f"{line}:{column} (byte {offset})", content[offset]


def _mapped(path: Path) -> mmap:
    try:
        with path.open("rb") as file:
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: changed since the run started: {error}") from error


def _count_lines(content: mmap, start: int, end: int) -> int:
    chunks = range(start, end, _CHUNK)
    return sum(content[at : min(at + _CHUNK, end)].count(b"\n") for at in chunks)


def _next_character(content: mmap, offset: int, end: int) -> int:
    """Return the offset of the first character that begins at `offset` or later."""
    while offset < end and content[offset] & 0xC0 == 0x80:
        offset += 1
    return offset


class TextRecords(Records):
    """Records of the column `text`, from parts of files; large parts are several records."""

    columns = ("text",)

    def __init__(self, parts: Iterable[FilePart]) -> None:
        # Read again for each use: the page cache keeps what fits into memory.
        self._parts = [each for part in parts for each in limit_size(part)]
        hashed = xxhash.xxh3_128()
        for part in self._parts:
            # With the lengths, different lists of texts never have the same bytes.
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
    def continues(self, index: int) -> bool:
        return self._parts[index].continues

    @override
    def describe(self, index: int) -> str:
        return self._parts[index].name
