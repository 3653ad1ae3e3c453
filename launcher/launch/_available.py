"""How much memory of this machine a new process can take, as kernel and control groups have it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_FILES = {
    # Version 2 and version 1 of control groups: limit, use, and what of the use can be given back.
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that can be taken without swapping and without meeting a limit of a control group.

    Args:
        root: Where `proc` and `sys` are.

    Returns:
        Bytes; the whole of the machine's memory where there is no /proc to say what is free.
    """
    found = list(_control_groups(root))
    if (free := kib_values(root / "proc/meminfo").get("MemAvailable")) is not None:
        found.append(free)
    return min(found, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def kib_values(path: Path) -> dict[str, int]:
    """The lines `Name:  123 kB` of a file of the kernel, in bytes; empty where there is no file."""
    lines = _lines(path)
    pairs = (line.removesuffix(" kB").split(":") for line in lines if line.endswith(" kB"))
    return {name: int(number) * 1024 for name, number in pairs}


def _control_groups(root: Path) -> Iterator[int]:
    """What each control group that holds this process still lets it take."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            mounted /= "memory"
        limit_file, use_file, spare_key = _FILES["memory" if controllers else ""]
        group = mounted / path.lstrip("/")
        while group.is_relative_to(mounted):
            limit, use = _number(group / limit_file), _number(group / use_file)
            if limit is not None and use is not None:
                stat = dict(each.split() for each in _lines(group / "memory.stat"))
                yield max(0, limit - use + int(stat.get(spare_key, 0)))
            group = group.parent


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or the word `max`."""
    match _lines(path):
        case [text] if text.isdigit():
            return int(text)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
