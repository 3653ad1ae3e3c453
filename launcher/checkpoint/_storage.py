"""System calls of a save, one method each."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from typing_extensions import Buffer

# A planted symlink must not send our bytes elsewhere, and a data worker must not inherit the file.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Storage:
    """System calls of a save; all methods raise OSError."""

    # Every change that another process, or the next process after a crash, could see passes through
    # here: tests override `act` to stop a save at each of them in turn.
    def act(self, action: str, path: Path) -> None:
        """Do nothing; called before each change with the method's name and the (old) path."""

    def mkdir(self, path: Path) -> None:
        """Create a folder, which must not exist."""
        self.act("mkdir", path)
        path.mkdir()

    def create(self, path: Path) -> int:
        """Create a file, which must not exist, and return its descriptor."""
        self.act("create", path)
        return os.open(path, _CREATE, 0o666)

    def write(self, descriptor: int, path: Path, data: Buffer) -> int:
        """Append to a file; return the number of bytes written, which may be fewer than given."""
        self.act("write", path)
        return os.write(descriptor, data)

    def fsync(self, descriptor: int, path: Path) -> None:
        """Wait until a file's bytes are on the disk."""
        self.act("fsync", path)
        os.fsync(descriptor)

    def close(self, descriptor: int, path: Path) -> None:
        """Close a file."""
        # An error here counts: NFS may report a failed write only on close.
        self.act("close", path)
        os.close(descriptor)

    def fsync_folder(self, path: Path) -> None:
        """Wait until a folder's entries are on the disk."""
        self.act("fsync_folder", path)
        descriptor = os.open(path, _READ_FOLDER)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems do not support it for folders, and keep entries in order.
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
                raise
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder on the same disk, atomically."""
        self.act("rename", old)
        old.rename(new)

    def unlink(self, path: Path) -> None:
        self.act("unlink", path)
        path.unlink()

    def rmdir(self, path: Path) -> None:
        self.act("rmdir", path)
        path.rmdir()

    def remove(self, path: Path) -> None:
        """Delete a folder and its content; symbolic links are not followed."""
        if path.is_symlink() or not path.is_dir():
            self.unlink(path)
            return
        for entry in sorted(path.iterdir()):
            self.remove(entry)
        self.rmdir(path)

    def free_bytes(self, path: Path) -> int:
        """Return the free bytes of the disk that a folder is on."""
        return shutil.disk_usage(path).free
