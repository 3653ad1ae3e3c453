"""Files of a data source, by path or pattern."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import DataError

# Maximum number of problems that an error names.
_SHOWN = 5


def matching_files(patterns: str | Sequence[str], key: str) -> list[Path]:
    """Return the regular files that match patterns, each once, ordered by path."""
    found: dict[Path, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = str(Path(pattern).expanduser())
        # Path.glob follows no linked folders, and enters hidden ones.
        matches = [Path(match) for match in glob.glob(expanded, recursive=True)]  # noqa: PTH207
        files = [path for path in matches if path.is_file()]
        if not files:
            raise DataError(f"{key}: {pattern!r} {_no_file(pattern, matches)}")
        for path in files:
            found.setdefault(path.resolve(), path)
    # Sorted: the order of a folder's entries differs between file systems.
    return sorted(found.values(), key=Path.as_posix)


def split_files(
    files: str | Sequence[str], validation_files: str | Sequence[str] | None
) -> tuple[list[Path], list[Path]]:
    """Return the files to train on and those to hold out; a file that both match is held out."""
    train = matching_files(files, "data.files")
    if validation_files is None:
        return train, []
    validation = matching_files(validation_files, "data.validation_files")
    # The same file may be matched through a link.
    held_out = {path.resolve() for path in validation}
    train = [path for path in train if path.resolve() not in held_out]
    if not train:
        raise DataError("data.validation_files matches every file that data.files matches")
    return train, validation


def stop_at(problems: Sequence[str], what: str) -> None:
    """Raise DataError with the first problems, if there are any; `what` is skipped on request."""
    if not problems:
        return
    lines = list(problems[:_SHOWN])
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more {what}")
    raise DataError("\n  ".join([*lines, f"(data.on_error=skip leaves such {what} out)"]))


def _no_file(pattern: str, matches: Sequence[Path]) -> str:
    if any(path.is_dir() for path in matches):
        return f"matches only folders in {Path.cwd()}; write {pattern.rstrip('/*')}/**/*.txt"
    for path in matches:
        if path.is_symlink() and not path.exists():
            return f"matches only a broken link: {path} points to {path.readlink()}"
        return f"matches no regular file: {path} is a pipe, a socket or a device; copy it to a file"
    return f"matches no file in {Path.cwd()}"
