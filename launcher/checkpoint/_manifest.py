"""Manifest of a checkpoint, and verification of its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError
from typing_extensions import override
from xxhash import xxh3_128

from launcher.contracts import Settings

# manifest.json names every other file with its size and xxh3-128; its own last line is the xxh3-128
# of all bytes before it. So a flipped bit anywhere in a checkpoint is found before any of it is
# used: neither safetensors nor torch's formats detect one. xxh3, because it is faster than the
# disk; it protects from damage, not from an attacker.
NAME = "manifest.json"
FORMAT = 1
CONFIG = "config.json"
TRAIN_STATE = "train_state.json"
METADATA = "state/.metadata"

_SEAL = ',\n  "xxh3_128": "{digest}"\n}}\n'
_SEAL_LENGTH = len(_SEAL.format(digest="0" * 32))
_CHUNK_BYTES = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileRecord(Settings):
    """Expected size and checksum of a file."""

    size: int = Field(ge=0)
    """Length in bytes."""
    xxh3_128: str = Field(pattern="^[0-9a-f]{32}$")
    """Checksum of its bytes."""

    @override
    def __str__(self) -> str:
        return f"{self.size:,} bytes with xxh3-128 {self.xxh3_128}"


class Manifest(Settings):
    """Content of manifest.json."""

    format: int
    """Version of this layout."""
    run_id: str
    """The run that wrote it."""
    step: int = Field(ge=0)
    """Optimizer steps done."""
    parent_step: int | None
    """The checkpoint that was loaded or saved before this one; None for the first."""
    world_size: int = Field(ge=1)
    """Ranks that wrote it."""
    data_fingerprint: str
    """Hash of the training examples."""
    config_sha256: str
    """Hash of config.json."""
    versions: dict[str, str]
    """Versions of trainctl, torch and Python that wrote it."""
    files: dict[str, FileRecord]
    """Every other file, by path relative to the folder, with forward slashes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a verification.

    Attributes:
        manifest: None if it cannot be read.
        faults: A line per damaged file, with expected and found values; empty if valid.
    """

    manifest: Manifest | None
    faults: list[str]


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON, ending with the checksum of its own bytes."""
    body = manifest.model_dump_json(indent=2).removesuffix("\n}").encode()
    return body + _SEAL.format(digest=xxh3_128(body).hexdigest()).encode()


def decode(data: bytes) -> Manifest:
    """Return the manifest from the bytes of `encode`.

    Raises:
        ValueError: The checksum is wrong, or the JSON is no manifest of this format.
    """
    # The checksum first: nothing is parsed that may be damaged.
    body, seal = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    digest = xxh3_128(body).hexdigest()
    if seal != _SEAL.format(digest=digest).encode():
        raise ValueError(f"its last line must be the xxh3-128 {digest}, found {seal!r}")
    try:
        manifest = Manifest.model_validate_json(body + b"\n}")
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"not a manifest of this version: {problems}") from error
    if manifest.format != FORMAT:
        raise ValueError(f"written in format {manifest.format}, this version reads {FORMAT}")
    if missing := {CONFIG, TRAIN_STATE, METADATA} - manifest.files.keys():
        raise ValueError(f"does not name {', '.join(sorted(missing))}")
    return manifest


def record(data: bytes) -> FileRecord:
    return FileRecord(size=len(data), xxh3_128=xxh3_128(data).hexdigest())


def examine(folder: Path) -> Verdict:
    """Verify every byte of a checkpoint."""
    manifest, fault = open_checkpoint(folder)
    if manifest is None:
        return Verdict(None, [fault])
    return Verdict(manifest, check_files(folder, manifest.files))


def open_checkpoint(folder: Path) -> tuple[Manifest | None, str]:
    """Return the manifest, without checking the files; or None and the fault."""
    if folder.is_symlink() or not folder.is_dir():
        return None, f"{folder.name} is not a folder"
    try:
        return decode(_read(folder / NAME)), ""
    except (OSError, ValueError) as error:
        return None, f"{NAME}: {error}"


def check_files(folder: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """Compare files with their records; return a line per damaged file."""
    return [fault for name, record in files.items() if (fault := _check(folder, name, record))]


def share_of(files: Mapping[str, FileRecord], rank: int, ranks: int) -> dict[str, FileRecord]:
    """Return the files that one of several ranks checks, with about equal bytes for each."""
    # Largest first to the least loaded rank. Computed on each rank from the manifest alone: sorted
    # by name too, so that all come to the same result.
    shares: list[dict[str, FileRecord]] = [{} for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        least = loads.index(min(loads))
        shares[least][name] = files[name]
        loads[least] += files[name].size
    return shares[rank]


def peek(folder: Path) -> Manifest | None:
    """Return the manifest without verifying the files; None if it cannot be read."""
    try:
        return decode(_read(folder / NAME))
    except (OSError, ValueError):
        return None


def verify(folder: Path) -> list[str]:
    """Return a line per damaged file; empty if every byte is as it was written."""
    return examine(folder).faults


def _check(folder: Path, name: str, expected: FileRecord) -> str | None:
    # The manifest may be of someone else: its paths must not lead out of the checkpoint.
    parts = PurePosixPath(name).parts
    if not parts or str(PurePosixPath(*parts)) != name or ".." in parts or parts[0] == "/":
        return f"{NAME}: the path {name!r} leaves the checkpoint"
    if any((folder / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts))):
        return f"{name}: lies behind a symbolic link"
    try:
        found = _record_of(folder / name)
    except OSError as error:
        return f"{name}: expected {expected}, found {error.strerror or error}"
    return None if found == expected else f"{name}: expected {expected}, found {found}"


def _record_of(path: Path) -> FileRecord:
    # One buffer, reused: reading 80 GB must not need 80 GB.
    digest, size = xxh3_128(), 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    descriptor = _open(path)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileRecord(size=size, xxh3_128=digest.hexdigest())


def _read(path: Path) -> bytes:
    with os.fdopen(_open(path), "rb") as file:
        return file.read()


def _open(path: Path) -> int:
    """Open a regular file."""
    # Before opening: opening a pipe blocks, and opening a device may act on it.
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError("not a regular file")
    return os.open(path, _READ)


def strays(folder: Path, manifest: Manifest) -> list[str]:
    """Return the files that the manifest does not name, and that are never read."""
    known = {NAME, *manifest.files}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in found)
    return sorted(name for name in names if name not in known)
