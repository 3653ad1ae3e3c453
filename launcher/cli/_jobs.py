"""Jobs of `run -m`: a record of each, and the summary of all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.config.multirun import Place
    from launcher.errors import TrainctlError

_SUMMARY = "summary.json"


class Job:
    """Record of a job, `job-N.json` in the sweep's folder."""

    # A file for each job: a launcher of Hydra's may run it in another process.

    def __init__(self, place: Place, objective: str, overrides: Sequence[str]) -> None:
        self._place = place
        self._values: dict[str, Any] = {
            "job": place.number,
            "of": place.of,
            "overrides": list(overrides),
            "objective": objective,
            "value": None,
            # Of a job whose ranks other nodes run, the result is in its run directory.
            "status": "prepared",
            "exit_status": None,
            "error": None,
            "run": None,
        }

    @property
    def status(self) -> str:
        """Outcome of the job."""
        status: str = self._values["status"]
        return status

    def created(self, run: Path) -> None:
        """Record the run directory."""
        self._values["run"] = str(run)

    def completed(self, value: float | None) -> None:
        """Record the objective's value."""
        finite = value is not None and math.isfinite(value)
        self._values |= {
            "status": "completed",
            "exit_status": 0,
            "value": value if finite else None,
        }

    def failed(self, error: TrainctlError) -> None:
        """Record the error that ended the job."""
        from launcher.errors import Interrupted, Preempted

        self._values |= {
            "status": "stopped" if isinstance(error, Interrupted | Preempted) else "failed",
            "exit_status": error.exit_status,
            "error": f"{type(error).__name__}: {error}",
        }

    def write(self) -> None:
        """Write the record."""
        from launcher.run_dir import write_atomically

        # The job's own result must not be lost over it.
        with suppress(OSError):
            self._place.folder.mkdir(parents=True, exist_ok=True)
            path = self._place.folder / f"job-{self._place.number}.json"
            write_atomically(path, json.dumps(self._values, indent=1) + "\n")


def summarise(folder: Path) -> None:
    """Print a table of the sweep's jobs, and write it to summary.json in its folder."""
    from launcher.cli._console import table
    from launcher.run_dir import write_atomically

    records: list[dict[str, Any]] = []
    for path in folder.glob("job-*.json"):
        with suppress(OSError, ValueError):
            records.append(json.loads(path.read_text(encoding="utf-8")))
    if not records:
        return
    records.sort(key=lambda record: int(record["job"]))
    with suppress(OSError):
        write_atomically(folder / _SUMMARY, json.dumps(records, indent=1) + "\n")
    print(table(_rows(records)))
    print(f"written to {_shown(folder / _SUMMARY)}", flush=True)


def _rows(records: Sequence[Mapping[str, Any]]) -> Sequence[tuple[str, ...]]:
    # Words that all jobs share say nothing about one of them.
    common = set.intersection(*(set(record["overrides"]) for record in records))
    if len(records) == 1:
        common = set()
    rows = [("job", "status", records[0]["objective"], "run", "overrides")]
    for record in records:
        own = [word for word in record["overrides"] if word not in common]
        status, value = record["status"], record["value"]
        rows.append(
            (
                f"{record['job']}/{record['of']}",
                f"{status} ({record['exit_status']})" if record["error"] else status,
                "-" if value is None else f"{value:.4g}",
                "-" if record["run"] is None else _shown(Path(record["run"])),
                " ".join(own),
            )
        )
    return rows


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
