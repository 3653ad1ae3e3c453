"""Files through which the launching process and the ranks exchange cells and records."""

from pathlib import Path

from launcher.run_dir import RunDir

CELLS = "cells.json"
"""File in the run directory: what the ranks run."""


def record_file(run_dir: RunDir, cell: str, rank: int) -> Path:
    """Return the file with one rank's record of a cell."""
    return run_dir.path / "cells" / cell / f"rank-{rank}.json"


def started_file(run_dir: RunDir, cell: str) -> Path:
    """Return the file that rank 0 makes when it begins a cell."""
    return run_dir.path / "cells" / cell / "started"
