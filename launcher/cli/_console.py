"""Print text: styled only on a terminal without `NO_COLOR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_GAP = "  "


def _styled(text: str, code: str) -> str:
    # Escape codes in a pipe or a file break grep. NO_COLOR is the convention of no-color.org.
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"\x1b[{code}m{text}\x1b[0m"


def bold(text: str) -> str:
    """Return a text as heading."""
    return _styled(text, "1")


def dim(text: str) -> str:
    """Return a text as secondary."""
    return _styled(text, "2")


def announce(text: str) -> None:
    """Print the current activity on a terminal, before seconds without output."""
    # To stderr, because stdout may be piped; Python sets it to None if it is closed.
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"trainctl: {text}", file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of plain text with aligned columns."""
    # On a terminal the last column wraps to its width; elsewhere each row is one line, for grep.
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    indent = sum(widths) + len(_GAP) * len(widths)
    room = _columns() - indent if sys.stdout.isatty() else 0
    lines = []
    for *cells, last in rows:
        head = "".join(f"{cell:<{width}}{_GAP}" for cell, width in zip(cells, widths, strict=True))
        body = _wrapped(last, room) if room >= 20 else [last]
        lines += [f"{head}{body[0]}".rstrip(), *(" " * indent + line for line in body[1:])]
    return "\n".join(lines)


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    # A path or a command is not wrapped, so that it can be copied.
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def print_json(value: object) -> None:
    """Print one JSON document; raise ValueError for NaN and infinity."""
    # Python writes NaN by default, which is no JSON: jq and JavaScript refuse the whole document.
    import json

    print(json.dumps(value, indent=2, allow_nan=False))
