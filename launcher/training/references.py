"""Baselines of the held-out data: computed once in a run, by rank 0."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.contracts import Records, Task
from launcher.run_dir import write_atomically

_POLL_S = 0.05


def references_of(
    task: Task, records: Records, path: Path, *, rank: int = 0
) -> Mapping[str, float]:
    """Return the task's baselines on held-out records, from a file if it has them.

    The other ranks wait for rank 0 here: in the collective that follows they would give up after
    `launch.timeout_s`, but a task may compute for longer.

    Args:
        task: Computes them.
        records: The held-out records.
        path: File that keeps them for resumed runs.
        rank: This rank.
    """
    while (kept := _read(path, records)) is None:
        if rank == 0:
            found = dict(task.references(records))
            values = {"fingerprint": records.fingerprint, "references": found}
            write_atomically(path, json.dumps(values, indent=1) + "\n")
            return found
        time.sleep(_POLL_S)
    return kept


def _read(path: Path, records: Records) -> Mapping[str, float] | None:
    """Return what the file has for the records; None if it is missing, damaged or of others."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        fits = stored["fingerprint"] == records.fingerprint
        return dict(stored["references"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
