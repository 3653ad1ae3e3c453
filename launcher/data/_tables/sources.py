"""Bytes of files, compressed ones too."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any

from launcher.data._tables.optional import pyarrow
from launcher.errors import DataError

BOM = b"\xef\xbb\xbf"
_ZSTD = b"\x28\xb5\x2f\xfd"
_OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_OTHERS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"PK\x03\x04": None, b"%PDF-": None}
_CHUNK = 2**20
# A file that expands further is an attack on the disk: text compresses to a hundredth at best.
_LARGEST_RATIO = 2000
_IN_MEMORY = 2**26


class Source:
    """The plain content of a file; a compressed one is expanded once, into a temporary file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._expanded: IO[bytes] | mmap | None = None
        with _reading(path), path.open("rb") as file:
            head = file.read(8)
            if not head:
                raise DataError(f"{path}: is empty")
            for magic, kind in _OTHERS.items():
                if head.startswith(magic):
                    cure = f"; use data={kind}" if kind else ""
                    raise DataError(f"{path}: is no text file{cure}")
            opened = _decompressed(path, head)
            if opened is not None:
                self._expanded = _expand(path, opened)

    @contextmanager
    def open(self) -> Iterator[IO[bytes] | mmap]:
        """Open the content for reading."""
        if self._expanded is not None:
            self._expanded.seek(0)
            yield self._expanded
            return
        with _reading(self.path), self.path.open("rb") as file:
            yield file

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`."""
        with self.open() as file:
            file.seek(start)
            return file.read(end - start)


def first_line(path: Path, largest: int) -> bytes:
    """Return the first line that is not blank, without reading the rest."""
    with _reading(path), path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        opened = _decompressed(path, head) or file
        with opened:
            while line := opened.readline(largest):
                if line.removeprefix(BOM).strip():
                    return bytes(line)
    raise DataError(f"{path}: is empty")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read: {reason}") from error


def _decompressed(path: Path, head: bytes) -> IO[bytes] | None:
    if head.startswith(_ZSTD):
        pa = pyarrow("pyarrow", path)
        # Buffered, because pyarrow's stream does not read lines.
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    found = next((each for magic, each in _OPENERS.items() if head.startswith(magic)), None)
    return None if found is None else found(path, "rb")


def _expand(path: Path, opened: IO[bytes]) -> IO[bytes] | mmap:
    limit = _LARGEST_RATIO * path.stat().st_size
    with opened, tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as target:
        while chunk := opened.read(_CHUNK):
            target.write(chunk)
            if target.tell() > limit:
                raise DataError(
                    f"{path}: expands to more than {_LARGEST_RATIO:,} times its size, as no text "
                    "does; unpack it yourself if you trust it"
                )
        if target.tell() <= _IN_MEMORY:
            target.seek(0)
            return io.BytesIO(target.read())
        target.flush()
        # The map keeps the file, which has no name.
        return mmap(target.fileno(), 0, access=ACCESS_READ)
