"""Record the outcome of a rank in RUN_DIR/result/rank-N.json."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from launcher import errors
from launcher.errors import (
    ConnectionLost,
    Hang,
    LaunchError,
    LostRank,
    RankFailed,
    TrainctlError,
)
from launcher.launch._environment import attempt
from launcher.run_dir import RunDir, write_atomically

if TYPE_CHECKING:
    from launcher.training.runner import Outcome

MISMATCH = (
    "the ranks called different collectives, or one with tensors of different sizes; compare the "
    "Python stacks in the ranks' logs"
)
# Messages of gloo, NCCL and the store on a rank whose peer has exited.
_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "failed to recv, got 0 bytes",
    "remote process exited",
    "NCCL communicator was aborted",
)
_TIMED_OUT = ("Timed out waiting", "wait timeout after", "Timed out after", "Watchdog caught")
_MISMATCHED = ("doesn't match expected size", "[enforce fail", "Detected mismatch between")


def record_completed(run_dir: RunDir, rank: int, outcome: Outcome) -> int:
    """Record that a rank reached the end of the run, and return its exit status."""
    values = {
        "step": outcome.state.step,
        "scores": dict(outcome.scores),
        "references": dict(outcome.references),
        "stopped": outcome.state.stopped,
        "sample": outcome.sample,
        "best": dict(outcome.best),
        "unread": list(outcome.unread),
    }
    try:
        _write(run_dir, rank, values)
    except OSError as problem:
        error = LaunchError(f"the last step is done, but the result was not written: {problem}")
        return record_failed(run_dir, rank, error)
    return 0


def record_failed(run_dir: RunDir, rank: int, error: BaseException) -> int:
    """Record the error that ended a rank, and return its exit status."""
    found = _classified(rank, error)
    values: dict[str, Any] = errors.record(found)
    values["lost_peer"] = any(_is_lost_peer(each) for each in _chain(error))
    # A TrainctlError is the user's to fix; a lost peer has its own report.
    known = isinstance(error, TrainctlError) or values["lost_peer"]
    values["traceback"] = "" if known else "".join(traceback.format_exception(error)).rstrip()
    try:
        _write(run_dir, rank, values)
    except OSError as problem:
        # Only the console is left to report why this rank ends.
        text = values["traceback"] or f"trainctl: rank {rank}: {found}"
        print(f"{text}\n(not written: {problem})", file=sys.stderr, flush=True)  # noqa: T201
    return found.exit_status


def to_json(values: Mapping[str, Any]) -> str:
    """Return JSON with null for numbers that are not finite."""
    # Python writes NaN, which is no JSON: strict parsers refuse the file.
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def _write(run_dir: RunDir, rank: int, values: Mapping[str, Any]) -> None:
    path = run_dir.rank_result(rank)
    path.parent.mkdir(exist_ok=True)
    known = {"rank": rank, "attempt": attempt() or 0, "time": time.time()}
    write_atomically(path, to_json({**known, **values}))


def _classified(rank: int, error: BaseException) -> TrainctlError:
    """Return the error that the launcher is to report."""
    if isinstance(error, TrainctlError):
        return error
    # The first line: C++ exceptions of torch append a stack of their own frames.
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if _says(error, _TIMED_OUT):
        return Hang(f"rank {rank} waited too long for another rank ({text})")
    if _says(error, _MISMATCHED):
        return RankFailed(f"rank {rank} failed in a collective: {MISMATCH} ({text})", 1)
    if _says(error, _LOST_PEER):
        return ConnectionLost(f"rank {rank} lost the connection to another rank ({text})", 1)
    return RankFailed(f"rank {rank} failed: {text}", 1)


def _is_lost_peer(error: BaseException) -> bool:
    return isinstance(error, LostRank) or _says(error, (*_LOST_PEER, *_TIMED_OUT))


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    # torch.distributed's own errors are RuntimeErrors as well.
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


# An error of a collective may be the cause of another, as of a LaunchError in `process_group`.
def _chain(error: BaseException) -> Iterator[BaseException]:
    while True:
        yield error
        if error.__cause__ is None:
            return
        error = error.__cause__


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
