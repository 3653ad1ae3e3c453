"""Start all ranks again after a failure that new processes may not meet."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from launcher.checkpoint import published
from launcher.errors import TrainctlError
from launcher.run_dir import RunDir

T = TypeVar("T")

# A failure of the program itself comes back at the same step. By chance, a second kill may also
# come before the step of the first.
_WITHOUT_PROGRESS = 2


@dataclass(slots=True)
class Attempt:
    """One start of all ranks.

    Attributes:
        number: Number of restarts before it.
        step: Most steps that a rank had done at its end.
        stopping: A signal asked the run to end.
    """

    number: int = 0
    step: int = 0
    stopping: bool = False


def with_restarts(run: Callable[[Attempt], T], run_dir: RunDir, budget: int) -> tuple[T, int]:
    """Run the ranks to the end, at most `budget` times again after a failure.

    Args:
        run: Starts the ranks and waits for them; sets `step` and `stopping` of the attempt.
        run_dir: The run directory, from whose newest good checkpoint each attempt continues.
        budget: Most restarts.

    Returns:
        The result, and the number of restarts.

    Raises:
        TrainctlError: The failure of the last attempt.
    """
    number = furthest = idle = 0
    while True:
        attempt, saved = Attempt(number), _saved_step(run_dir)
        try:
            return run(attempt), number
        except TrainctlError as error:
            now = _saved_step(run_dir)
            gained = number == 0 or attempt.step > furthest or now > saved
            idle, furthest = (0 if gained else idle + 1), max(furthest, attempt.step)
            if budget == 0 or attempt.stopping or not error.is_transient:
                raise
            if number == budget:
                error.add_note(f"all restarts are used (launch.max_restarts={budget})")
                raise
            if idle == _WITHOUT_PROGRESS:
                error.add_note(
                    f"not restarted again: the last {idle} attempts saved no checkpoint and came "
                    f"no further than step {furthest}"
                )
                raise
            number += 1
            record_restart(run_dir, error, attempt=number, of=budget, reached=attempt.step)


def restarts_of(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return the entries of RUN_DIR/restarts.jsonl."""
    if not run_dir.restarts.exists():
        return []
    lines = run_dir.restarts.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def record_restart(
    run_dir: RunDir, error: TrainctlError, *, attempt: int, of: int, reached: int | None = None
) -> None:
    """Print that the ranks start again, and add it to RUN_DIR/restarts.jsonl.

    Args:
        run_dir: The run directory.
        error: The cause.
        attempt: Number of the restart, from 1.
        of: Most restarts.
        reached: Most steps that a rank had done; None where that is not known.
    """
    step = _saved_step(run_dir)
    values = {
        "attempt": attempt,
        "time": round(time.time(), 3),
        "error": type(error).__name__,
        "message": str(error),
        "exit_status": error.exit_status,
        "reached_step": reached,
        "from_step": step,
    }
    with run_dir.restarts.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
    text = f"{str(error).splitlines()[0]}; restart {attempt} of {of} from step {step}"
    print(f"trainctl: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _saved_step(run_dir: RunDir) -> int:
    return max((checkpoint.step for checkpoint in published(run_dir)), default=0)
