"""Result or error of a run, from the records of its ranks."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher import errors
from launcher.errors import (
    Hang,
    Interrupted,
    LaunchError,
    Preempted,
    RankFailed,
    TrainctlError,
)
from launcher.launch._environment import attempt
from launcher.launch._processes import RankProcess
from launcher.launch._record import MISMATCH, record_failed, to_json
from launcher.run_dir import RunDir, write_atomically

_TAIL_BYTES = 65_536
# Severities of failures; those from `_WAITED` on are consequences of another rank's failure. A rank
# that waited too long closes its connections: that others lost them follows from it.
_OWN, _ASKED, _WAITED, _LOST, _ENDED = range(5)
# Another node's launcher sees the end of its rank, and writes it to a file system of the network.
_CAUSE_S = 5.0
# After a hang: all launchers look at the same intervals, and the error must come within seconds.
_CAUSE_OF_HANG_S = 2.0
_POLL_S = 0.1
# Frames in which a rank calls, or waits for, other ranks.
_COLLECTIVE = re.compile(r'File "[^"]*torch/(distributed|autograd|nn/parallel)/')


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a run that reached its last step.

    Attributes:
        step: Optimizer steps done.
        scores: The last validation scores; NaN for one that is not finite.
        references: Baselines of the scores.
        sample: Generated text, if the task has some.
        stopped: Reason why the run ended before its full length; None if it did not.
        best: The scores of the evaluation with the best objective, and its `step`.
        unread: Settings that rank 0 did not read.
        without_effect: Settings of the user's that no process read, each with who set it.
        restarts: Number of restarts of the ranks after a failure.
    """

    step: int
    scores: Mapping[str, float]
    references: Mapping[str, float]
    sample: str | None
    stopped: str | None
    best: Mapping[str, float] = field(default_factory=dict)
    unread: Sequence[str] = ()
    without_effect: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 0


@dataclass(frozen=True, slots=True, order=True)
class _Failure:
    """Failure of a rank; the smallest one is reported."""

    # When one rank fails the others fail next, of a closed connection, and often write that down
    # first. So the kind of failure decides before the time.
    severity: int  # see the constants below
    time: float
    rank: int


def clear(run_dir: RunDir) -> None:
    """Remove the result of an earlier launch, which would be read as that of this one."""
    run_dir.result.unlink(missing_ok=True)
    folder = run_dir.rank_result(0).parent
    folder.mkdir(exist_ok=True)
    for path in folder.glob("rank-*.json"):
        path.unlink(missing_ok=True)


def outcome(run_dir: RunDir, ranks: Sequence[RankProcess], *, has_others: bool = False) -> Result:
    """Return the result of a run whose ranks have ended.

    Args:
        run_dir: The run directory.
        ranks: The processes that this launcher started.
        has_others: Other launchers started ranks of the run, too.

    Raises:
        TrainctlError: The first failure in time of a rank that did not fail because of another.
    """
    failures, records = _failures(run_dir, ranks)
    if failures and has_others:
        for ended in ranks:
            if ended.rank not in records and not ended.killed:
                # A rank that a signal killed left no record: only its own launcher knows.
                error = _error(run_dir, ended.rank, None, ended, len(ranks))
                record_failed(run_dir, ended.rank, error)
        failures, records = _await_cause(run_dir, ranks, _CAUSE_S)
    if failures:
        first = min(failures)
        process = next((rank for rank in ranks if rank.rank == first.rank), None)
        raise _error(run_dir, first.rank, records.get(first.rank), process, len(ranks))
    own = records[min((rank.rank for rank in ranks), default=0)]
    return Result(**_fields(own), unread=own["unread"])


def cause_elsewhere(run_dir: RunDir, ranks: Sequence[RankProcess]) -> TrainctlError | None:
    """Return what another launcher recorded as the cause of a failure here, if anything."""
    failures, records = _await_cause(run_dir, ranks, _CAUSE_OF_HANG_S)
    first = min(failures)
    if first.severity >= _WAITED:
        return None
    return _error(run_dir, first.rank, records.get(first.rank), None, len(ranks))


def last_failure(run_dir: RunDir) -> TrainctlError | None:
    """Return the failure of the newest attempt that has left records; None without one."""
    records = {
        rank: values
        for rank in _recorded(run_dir, ())
        if (values := _stored(run_dir, rank)) is not None and "error" in values
    }
    newest = max((values["attempt"] for values in records.values()), default=0)
    failures = [
        _Failure(_severity(values), values["time"], rank)
        for rank, values in records.items()
        if values["attempt"] == newest
    ]
    return errors.revive(records[min(failures).rank]) if failures else None


@dataclass(slots=True)
class FailuresElsewhere:
    """Finds failures of ranks that other launchers started.

    Attributes:
        run_dir: The run directory.
        ranks: The processes that this launcher started.
    """

    run_dir: RunDir
    ranks: Sequence[RankProcess]
    _seen: set[int] = field(default_factory=set)

    def __call__(self) -> bool:
        """Return True when another rank has recorded a failure of its own."""
        ours = {rank.rank for rank in self.ranks}
        for rank in set(_recorded(self.run_dir, ())) - ours - self._seen:
            values = _read(self.run_dir, rank)
            if values is None:
                continue
            self._seen.add(rank)
            # A rank that was asked to stop has agreed on that with ours.
            if "error" in values and _severity(values) == 0:
                return True
        return False


def _await_cause(
    run_dir: RunDir, ranks: Sequence[RankProcess], seconds: float
) -> tuple[list[_Failure], dict[int, dict[str, Any]]]:
    """Read all failures; while all are consequences, give another launcher time for the cause."""
    deadline = time.monotonic() + seconds
    while True:
        failures, records = _failures(run_dir, ranks)
        if min(failures).severity < _WAITED or time.monotonic() > deadline:
            return failures, records
        time.sleep(_POLL_S)


def _failures(
    run_dir: RunDir, ranks: Sequence[RankProcess]
) -> tuple[list[_Failure], dict[int, dict[str, Any]]]:
    started = [rank.rank for rank in ranks]
    records = {rank: read for rank in _recorded(run_dir, started) if (read := _read(run_dir, rank))}
    newest = max((values["attempt"] for values in records.values()), default=0)
    records = {rank: values for rank, values in records.items() if values["attempt"] == newest}
    failures = [
        failure for rank in ranks if (failure := _failure(rank, records.get(rank.rank))) is not None
    ]
    # A program that starts the ranks itself (torchrun) exits with 1 for every cause: their records
    # have the reason.
    failures += [
        _Failure(_severity(values), values["time"], rank)
        for rank, values in records.items()
        if rank not in started and "error" in values
    ]
    return failures, records


def write_result(run_dir: RunDir, result: Result | TrainctlError, seconds: float) -> None:
    """Write RUN_DIR/result.json, which other programs read; `seconds` is the launch's duration."""
    values: dict[str, Any]
    if isinstance(result, TrainctlError):
        stopped = isinstance(result, Preempted | Interrupted)
        values = {"status": "stopped" if stopped else "failed", **errors.record(result)}
    else:
        values = {
            "status": "completed",
            "exit_status": 0,
            "step": result.step,
            "scores": dict(result.scores),
            "references": dict(result.references),
            "sample": result.sample,
            "stopped": result.stopped,
            "best": dict(result.best),
            "export": run_dir.export.name if run_dir.export.exists() else None,
            "without_effect": dict(result.without_effect),
            "restarts": result.restarts,
        }
    values["duration_s"] = round(seconds, 3)
    try:
        write_atomically(run_dir.result, to_json(values))
    except OSError as error:
        problem = f"{run_dir.result} could not be written: {error.strerror}"
        if not isinstance(result, TrainctlError):
            raise LaunchError(f"the run is complete, but {problem}") from error
        # The error that ended the run must not be lost over it.
        result.add_note(problem)


def completed(run_dir: RunDir) -> Result | None:
    """Return the result of a run that ended normally, otherwise None."""
    try:
        values = json.loads(run_dir.result.read_text(encoding="utf-8"))
        if values["status"] != "completed":
            return None
        return Result(**_fields(values))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def ended(run_dir: RunDir) -> Result:
    """Return the result that another launcher has written to RUN_DIR/result.json.

    Raises:
        TrainctlError: The error that ended the run, or result.json is damaged.
    """
    if (result := completed(run_dir)) is not None:
        return result
    try:
        raise errors.revive(json.loads(run_dir.result.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaunchError(f"{run_dir.result} cannot be read: {error}") from error


def log_tail(log: Path, start: int = 0) -> str:
    # Bounded: a rank that printed a warning per step may have written gigabytes.
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def in_collective(stack: str) -> bool:
    """Return True if a Python stack has a frame that calls or waits for other ranks."""
    return _COLLECTIVE.search(stack) is not None


def _recorded(run_dir: RunDir, started: Iterable[int]) -> list[int]:
    paths = run_dir.rank_result(0).parent.glob("rank-*.json")
    found = {int(path.stem.removeprefix("rank-")) for path in paths}
    return sorted(found | set(started))


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    names = ("step", "scores", "references", "sample", "stopped", "best")
    fields = {name: values[name] for name in names}
    # JSON has no NaN: `to_json` wrote null.
    scores = {key: math.nan if score is None else score for key, score in values["scores"].items()}
    return {**fields, "scores": scores}


def _stored(run_dir: RunDir, rank: int) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(run_dir.rank_result(rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values


def _read(run_dir: RunDir, rank: int) -> dict[str, Any] | None:
    values = _stored(run_dir, rank)
    # Where torchrun restarts the ranks, those of an earlier attempt have left records.
    own = attempt()
    return None if values is None or values["attempt"] < (own or 0) else values


def _failure(process: RankProcess, values: Mapping[str, Any] | None) -> _Failure | None:
    if values is not None:
        if "error" not in values:
            return None
        return _Failure(_severity(values), values["time"], process.rank)
    return _Failure(_ENDED if process.killed else _OWN, process.ended, process.rank)


def _severity(values: Mapping[str, Any]) -> int:
    if values["lost_peer"]:
        return _WAITED if values["error"] == Hang.__name__ else _LOST
    return _ASKED if values["error"] in {Preempted.__name__, Interrupted.__name__} else _OWN


def _error(
    run_dir: RunDir,
    rank: int,
    values: Mapping[str, Any] | None,
    process: RankProcess | None,
    ranks: int,
) -> TrainctlError:
    if values is not None:
        if values["traceback"]:
            print(values["traceback"], file=sys.stderr)  # noqa: T201 - a bug prints whole
        return errors.revive(values)
    log = run_dir.log(rank)
    status = 1 if process is None or process.status is None else process.status
    if status >= 0:
        return RankFailed(f"rank {rank} ended with status {status}; see {log}", status or 1)
    number = signal.Signals(-status)
    text = f"rank {rank} was killed by {number.name}; see {log}"
    # Gloo aborts the process when the other side sends unexpected data.
    if number is signal.SIGABRT and ranks > 1 and in_collective(log_tail(log)):
        text = f"rank {rank} was aborted in a collective: {MISMATCH} ({log})"
    return RankFailed(text, 128 + number)
