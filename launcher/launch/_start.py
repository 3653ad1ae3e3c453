"""What the launching process does with a run directory: start the ranks, wait, report."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from launcher import errors
from launcher.config.schema import RunConfig
from launcher.errors import LaunchError, RankFailed
from launcher.run_dir import RunDir

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A rank must not believe that it belongs to the torchrun or srun that may have started the
# launcher.
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended that reached its last step.

    Attributes:
        step: Optimizer steps done.
        scores: The last validation scores.
        references: Figures that put the scores in perspective.
        sample: A taste of what was learned, if the task has one.
    """

    step: int
    scores: Mapping[str, float]
    references: Mapping[str, float]
    sample: str | None


def start(config: RunConfig, run_dir: RunDir, lock: int) -> Result:
    """Run the ranks of a run directory to their end.

    Args:
        config: What config.json holds.
        run_dir: The run directory, locked by us.
        lock: The descriptor that holds the lock; the ranks inherit it.

    Raises:
        TrainctlError: What the ranks recorded.
    """
    run_dir.result.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_RANK_VARIABLES)}
    environment |= {**config.launch.environment(), "TRAINCTL_LAUNCHER_PID": str(os.getpid())}
    command = list(config.launch.command(run_dir))
    try:
        # A session of its own: Ctrl-C reaches the ranks once, from us, and not a second time from
        # the terminal.
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=_folder(run_dir),
            start_new_session=True,
            pass_fds=(lock,),
        )
    except OSError as error:
        raise LaunchError(f"cannot start {command[0]}: {error.strerror}") from error
    with _forwarding(process):
        status = process.wait()
    return _result(run_dir, status)


def _result(run_dir: RunDir, status: int) -> Result:
    try:
        recorded: dict[str, Any] = json.loads(run_dir.result.read_text(encoding="utf-8"))
    except FileNotFoundError:
        log = run_dir.log(0)
        if status < 0:
            name = signal.Signals(-status).name
            raise RankFailed(f"the rank was killed by {name}; see {log}", 128 - status) from None
        raise RankFailed(f"the rank ended with status {status}; see {log}", status or 1) from None
    if "error" in recorded:
        raise errors.revive(recorded["error"], recorded["message"])
    return Result(**recorded)


def _folder(run_dir: RunDir) -> str | None:
    """The folder of the first launch: relative paths in the config mean what they meant then."""
    try:
        folder = json.loads(run_dir.env.read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError):
        return None
    return folder if pathlib.Path(folder).is_dir() else None


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass on what asks us to end; the ranks decide how."""

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        if process.poll() is None:
            process.send_signal(number)

    # A thread (of a sweep's launcher) may not set handlers: there the main thread's stay in force.
    ours = _FORWARDED if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, forward) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
