"""Baselines of the held-out data: computed once in a run, by rank 0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from launcher.contracts import Records, Task
from launcher.run_dir import write_atomically


def references_of(task: Task, records: Records, path: Path) -> Mapping[str, float]:
    """Return the task's baselines on held-out records; from a file if it has those of the records.

    Args:
        task: Computes them, which may take seconds.
        records: The held-out records.
        path: Where they are kept for resumed runs.
    """
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["fingerprint"] == records.fingerprint:
            kept: Mapping[str, float] = stored["references"]
            return kept
    found = task.references(records)
    values = {"fingerprint": records.fingerprint, "references": dict(found)}
    write_atomically(path, json.dumps(values, indent=1) + "\n")
    return found
