"""A checkpoint that is being written, under a temporary name that no reader opens."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from typing_extensions import Buffer, override
from xxhash import xxh3_128

from launcher.checkpoint._manifest import FileRecord
from launcher.checkpoint._storage import Storage

# Tensors are written as many small pieces (headers, padding) around one large one; large ones pass
# unbuffered.
_BUFFER_BYTES = 1 << 18


class Draft:
    """A folder that is filled file by file; every byte is hashed as it is written.

    Several ranks may fill the same folder, each through its own draft: one of them creates the
    folders, and each knows only the files that it wrote.

    Attributes:
        folder: The temporary folder.
        files: Size and checksum of every finished file, by path relative to the folder.
        num_bytes: Bytes written so far, also to files that are not finished.
        error: The first OSError, kept because torch's writers hide it behind errors of their own.
    """

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileRecord] = {}
        self.num_bytes = 0
        self.error: OSError | None = None
        self._storage = storage
        self._folders: list[Path] = []

    def make(self, *names: str) -> None:
        """Create the draft's folder and some folders in it."""
        for path in (self.folder, *(self.folder / name for name in names)):
            with self._watched():
                self._storage.mkdir(path)
            self._folders.append(path)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file and sync it."""
        with self.open(name) as stream:
            stream.write(data)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a stream to a new file; on a normal exit the file is synced and recorded."""
        path = self.folder / name
        with self._watched():
            descriptor = self._storage.create(path)
        sink = _Sink(self, descriptor, path)
        stream = io.BufferedWriter(sink, _BUFFER_BYTES)
        try:
            yield cast("BinaryIO", stream)
            if not stream.closed:
                stream.close()
            with self._watched():
                self._storage.fsync(descriptor, path)
        finally:
            # What is still buffered after an error is dropped; closing must not try to write it
            # again.
            sink.abandoned = True
            stream.close()
            with self._watched():
                self._storage.close(descriptor, path)
        self.files[name] = sink.record()

    def rename(self, old: str, new: str) -> None:
        """Rename a finished file."""
        with self._watched():
            self._storage.rename(self.folder / old, self.folder / new)
        self.files[new] = self.files.pop(old)

    def seal(self) -> None:
        """Sync the entries of the folders that this draft made, the inner ones first."""
        for folder in reversed(self._folders):
            self._storage.fsync_folder(folder)

    def append(self, descriptor: int, path: Path, data: Buffer) -> int:
        """Write through the storage, keeping the error."""
        with self._watched():
            count = self._storage.write(descriptor, path, data)
        self.num_bytes += count
        return count

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


class _Sink(io.RawIOBase):
    """The unbuffered end of a stream. The draft owns the descriptor."""

    def __init__(self, draft: Draft, descriptor: int, path: Path) -> None:
        self.abandoned = False
        self._draft = draft
        self._descriptor = descriptor
        self._path = path
        self._size = 0
        self._digest = xxh3_128()

    @override
    def writable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._size

    @override
    def write(self, data: Buffer, /) -> int:
        view = memoryview(data)
        if self.abandoned:
            return view.nbytes
        count = self._draft.append(self._descriptor, self._path, view)
        self._digest.update(view[:count])
        self._size += count
        return count

    def record(self) -> FileRecord:
        return FileRecord(size=self._size, xxh3_128=self._digest.hexdigest())
