"""Checkpoint that is being written, under a temporary name that no reader opens."""

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

# torch writes a tensor as many small blocks (headers, padding) and a large one. Without a buffer
# each small one is a system call; large ones bypass it.
_BUFFER_BYTES = 1 << 18


class Draft:
    """Folder that is filled file by file; every byte is hashed as it is written.

    Several ranks may fill one folder, each through its own draft.

    Attributes:
        files: Size and checksum of every finished file, by path relative to the folder.
        num_bytes: Bytes written so far, also to files that are not finished.
        error: The first OSError; torch's writers replace it by errors of their own.
    """

    # Hashed on the way to the disk and not by reading the file: what the disk damages is found when
    # it is read back.

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileRecord] = {}
        self.num_bytes = 0
        self.error: OSError | None = None
        self._storage = storage
        self._folders: list[Path] = []

    def make(self, *names: str) -> None:
        """Create the draft's folder, and folders in it."""
        for path in (self.folder, *(self.folder / name for name in names)):
            with self._watched():
                self._storage.mkdir(path)
            self._folders.append(path)

    def write(self, name: str, data: bytes) -> None:
        """Write a file and sync it."""
        with self.open(name) as stream:
            stream.write(data)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a stream to a new file, which is synced and recorded on a normal exit."""
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
            # After an error the buffer is dropped: closing must not write it again.
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
        """Sync the folders that this draft created, the inner ones first."""
        # fsync of a file does not make its name durable: that is an entry of the folder.
        for folder in reversed(self._folders):
            self._storage.fsync_folder(folder)

    def append(self, descriptor: int, path: Path, data: Buffer) -> int:
        """Write through the storage, and keep the first error."""
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
    """Unbuffered end of a stream, on a descriptor of the draft."""

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
