"""Appends whole records to a file, unbuffered."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.errors import LaunchError


class AppendFile:
    """Appends records without a buffer.

    Args:
        path: The file; it and its folder are made if missing.

    Raises:
        LaunchError: It cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(path, error) from error

    def append(self, record: bytes) -> None:
        """Write a record whole, or leave the file as it was.

        Raises:
            LaunchError: The disk is full or gone.
        """
        fd = self._fd
        assert fd is not None, "append after close"  # noqa: S101 - an invariant
        written = 0
        try:
            while written < len(record):
                written += os.write(fd, record[written:])
        except OSError as error:
            if written:
                os.ftruncate(fd, os.fstat(fd).st_size - written)
            raise unwritable(self._path, error) from error

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def unwritable(path: Path, error: OSError) -> LaunchError:
    """Return the error for a log file that the system refuses to write."""
    return LaunchError(
        f"cannot write {path}: {error.strerror}; free some space, or choose another run_root=DIR"
    )
