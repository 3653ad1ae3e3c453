"""Starts the ranks of a run and watches them.

`_start` runs in the launching process: it starts the program that the launch option names, once for
each rank. `_supervisor` forwards signals and ends the ranks when one has failed, `_watch` finds the
rank that hangs, `_outcome` makes a result or an error of what the ranks recorded. `_worker` is the
program that every rank executes; it reads RUN_DIR/config.json and nothing else. To add a way of
launching: `launcher/launch/<kind>.py` with a `LaunchOption`, and `conf/launch/<kind>.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.launch._early import EarlyRank
    from launcher.launch._outcome import Result
    from launcher.run_dir import RunDir


def preflight(config: RunConfig) -> None:
    """Let every option check files, folders and devices before anything starts.

    Raises:
        TrainctlError: The first problem; the others are its notes.
    """
    from launcher.launch import _begin

    _begin.preflight(config)


def begin(
    config: RunConfig,
    provenance: Mapping[str, str],
    overrides: Sequence[str],
    early: EarlyRank | None = None,
    *,
    quiet: bool = False,
) -> tuple[RunDir, Result]:
    """Make a run directory, write the config into it, and run it to its end.

    Args:
        config: The resolved config.
        provenance: For every key, what set it.
        overrides: The words of the command line.
        early: A process that has begun to be rank 0.
        quiet: Print nothing; what rank 0 prints goes to its log.

    Raises:
        TrainctlError: The directory cannot be made, or what the ranks reported.
    """
    from launcher.launch import _begin

    return _begin.begin(config, provenance, overrides, early, quiet=quiet)


def resume(
    path: Path, overrides: Sequence[str], allow: Sequence[str], *, quiet: bool = False
) -> Result:
    """Resume an existing run and run it to its end.

    Args:
        path: The run directory.
        overrides: Settings to change, in Hydra's grammar.
        allow: Keys that may change what is computed.
        quiet: Print nothing.

    Raises:
        TrainctlError: A change is not possible or not allowed, the directory is in use, or what the
            ranks reported.
    """
    from launcher.launch import _resume

    return _resume.resume(path, overrides, allow, quiet=quiet)


def total_memory() -> int:
    """Return the bytes of this machine's memory, or of this process's control group."""
    from launcher.launch import _memory

    return _memory.total_bytes()


def signals_end_launch() -> AbstractContextManager[None]:
    """End the launch with status 75 on a signal that comes before there are ranks.

    Raises:
        Preempted: SIGTERM, SIGHUP or SIGUSR1 came.
    """
    from launcher.launch import _signals

    return _signals.signals_end_launch()
