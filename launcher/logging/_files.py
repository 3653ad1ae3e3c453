"""Append-only files, and RUN_DIR/metrics.jsonl, which programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from typing_extensions import override

from launcher.contracts import LogContext, Row, Sink
from launcher.errors import LaunchError


class AppendFile:
    """Appends records to a file, which is created if missing."""

    # os.write without a buffer: after a kill a buffered row would be missing. No fsync, which would
    # take milliseconds per row: only a power cut loses rows, and a resume writes them again.

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(path, error) from error

    def append(self, record: bytes) -> None:
        """Append a record atomically; raise LaunchError if the disk is full."""
        fd = self._fd
        assert fd is not None, "append after close"  # noqa: S101 - an invariant
        written = 0
        try:
            while written < len(record):
                written += os.write(fd, record[written:])
        except OSError as error:
            # A part of a row would make the next one unreadable, too.
            if written:
                os.ftruncate(fd, os.fstat(fd).st_size - written)
            raise unwritable(self._path, error) from error

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def unwritable(path: Path, error: OSError) -> LaunchError:
    """Return the error for a log file that cannot be written."""
    return LaunchError(
        f"cannot write {path}: {error.strerror}; free some space, or choose another run_root=DIR"
    )


class JsonLines(Sink):
    """Writes a JSON object per row and line, with `null` for a missing number."""

    def __init__(self, context: LogContext) -> None:
        path = context.run_dir.metrics
        drop_after(path, context.start_step)
        self._file = AppendFile(path)

    @override
    def write(self, row: Row) -> None:
        """Append the row; raise ValueError on NaN or infinity."""
        self._file.append(json.dumps(row, allow_nan=False).encode() + b"\n")

    @override
    def close(self) -> None:
        self._file.close()


def drop_after(path: Path, step: int) -> None:
    """Remove the rows after a step, which a killed launch wrote, and an incomplete last line."""
    # Into a new file that replaces the old one: a crash in between loses no row.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with path.open("rb") as old, temporary.open("wb") as new:
            new.writelines(line for line in old if _stays(line, step))
            new.flush()
            os.fsync(new.fileno())
        temporary.replace(path)
    except FileNotFoundError:
        return
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def _stays(line: bytes, step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        row = json.loads(line)
    except ValueError:
        # The user's own line: it is kept.
        return True
    logged = row.get("step") if isinstance(row, dict) else None
    return not isinstance(logged, int) or logged <= step
