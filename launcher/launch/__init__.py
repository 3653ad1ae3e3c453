"""Start the ranks of a run and watch them.

In the launching process, `_start` starts the program that the launch option names, once for each
rank; `_supervisor` forwards signals and ends the ranks when one has failed, `_watch` finds ranks
that hang, and `_outcome` returns the result or raises the error that the ranks recorded. `_worker`
is the program of every rank; it reads only RUN_DIR/config.json. To add a way of
launching: `launcher/launch/<kind>.py` with a `LaunchOption`, and `conf/launch/<kind>.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.config.schema import RunConfig
    from launcher.contracts import World
    from launcher.launch._early import EarlyRank
    from launcher.launch._heartbeat import Heartbeat
    from launcher.launch._node import Node
    from launcher.launch._outcome import Result
    from launcher.launch._outer import OuterWorld
    from launcher.launch._signals import StopFlag
    from launcher.run_dir import RunDir
    from launcher.training.runner import Outcome


@dataclass(frozen=True, slots=True)
class StartOptions:
    """Settings of the start of a run's ranks.

    Attributes:
        early: A process that has begun to be rank 0; None if there is none.
        node: The ranks that this process starts; None for the ranks of the option `launch`.
        quiet: Print nothing; what rank 0 prints goes to its log.
        restarts: Restarts of the ranks after a failure that new processes may not meet.
        created: Called with the run directory of a new run before it starts.
    """

    early: EarlyRank | None = None
    node: Node | None = None
    quiet: bool = False
    restarts: int = 0
    created: Callable[[Path], None] | None = None


def preflight(config: RunConfig) -> None:
    """Check files, folders and devices of all options before anything starts.

    Raises:
        TrainctlError: The first problem; the others are its notes.
    """
    from launcher.launch import _begin

    _begin.preflight(config)


def begin(
    config: RunConfig,
    provenance: Mapping[str, str],
    overrides: Sequence[str],
    options: StartOptions,
) -> tuple[RunDir, Result | None]:
    """Create a run directory, write the config into it, and run to the end.

    Args:
        config: The resolved config.
        provenance: For every key, what set it.
        overrides: The overrides of the command line.
        options: How the ranks are started.

    Returns:
        The directory, and the result; None where launchers on other nodes start the ranks.

    Raises:
        TrainctlError: The directory cannot be created, or the error that the ranks reported.
    """
    from launcher.launch import _begin

    return _begin.begin(config, provenance, overrides, options)


def resume(
    path: Path, overrides: Sequence[str], allow: Sequence[str], options: StartOptions
) -> Result | None:
    """Resume a run and run it to the end.

    Args:
        path: The run directory.
        overrides: Settings to change, in Hydra's grammar.
        allow: Keys that may change what is computed.
        options: How the ranks are started.

    Raises:
        TrainctlError: A change is not possible or not allowed, the directory is in use, or the
            error that the ranks reported.
    """
    from launcher.launch import _resume

    return _resume.resume(path, overrides, allow, options)


def join(path: Path, number: int | None) -> Result | None:
    """Run one node's ranks of a prepared run to the end.

    Args:
        path: The run directory.
        number: The node, from 0; None where srun, torchrun or deepspeed says it.

    Returns:
        The result on node 0; None elsewhere.

    Raises:
        TrainctlError: The nodes did not find each other, or the error that a rank reported.
    """
    from launcher.launch import _join

    return _join.join(path, number)


def outer_world() -> OuterWorld | None:
    """Return the world of ranks that this process was started in by torchrun, srun, ….

    Raises:
        LaunchError: Its variables are incomplete.
    """
    from launcher.launch import _outer

    return _outer.outer_world()


def follow(world: OuterWorld) -> int:
    """Run this process's rank of the run that rank 0 of an outer world starts.

    Returns:
        The exit status.

    Raises:
        TrainctlError: The error that a rank reported.
    """
    from launcher.launch import _join

    return _join.follow(world)


def run_program(config: RunConfig, run_dir: RunDir, module: str, restarts: int = 0) -> None:
    """Run another program than the training on the ranks of a config, to its end.

    Args:
        config: Its `launch` gives number and environment of the ranks, its `parallelism` the mesh.
        run_dir: An existing folder with the config; logs and outcomes are written there.
        module: The program; it calls `rank_main`.
        restarts: Restarts of the ranks after a failure that new processes may not meet.

    Raises:
        TrainctlError: The first failure of a rank.
    """
    import sys

    from launcher.launch._lock import locked
    from launcher.launch._node import WholeRun
    from launcher.launch._start import start

    program = [sys.executable, "-P", "-m", module, str(run_dir.path)]
    node = WholeRun(config.launch, program)
    with locked(run_dir) as lock:
        start(config, run_dir, lock, StartOptions(node=node, quiet=True, restarts=restarts))


def restarts_of(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return the restarts of a run: attempt, error, message, reached_step, from_step."""
    from launcher.launch import _restarts

    return _restarts.restarts_of(run_dir)


def rank_main(path: str, run: Callable[[RunDir, StopFlag], Outcome]) -> int:
    """Be a rank of `run_program`: log, record the outcome, and return the exit status.

    Args:
        path: The run directory.
        run: What the rank does.
    """
    from launcher.launch import _worker

    return _worker.main(path, run)


def joined_world(config: RunConfig) -> AbstractContextManager[World]:
    """Import torch and join the other ranks; gives this rank's place among them.

    Raises:
        TrainctlError: The device is not there, or the ranks cannot reach each other.
    """
    from launcher.launch import _worker

    return _worker.joined_world(config)


def heartbeat(rank: int) -> Heartbeat:
    """Return the function with which a rank reports its progress to the launcher."""
    from launcher.launch._heartbeat import Heartbeat

    return Heartbeat(rank)


def total_memory() -> int:
    """Return the bytes of this machine's memory, or of this process's control group."""
    from launcher.launch import _memory

    return _memory.total_bytes()


def signals_end_launch() -> AbstractContextManager[None]:
    """End the launch with status 75 on a signal before there are ranks.

    Raises:
        Preempted: SIGTERM, SIGHUP or SIGUSR1 was received.
    """
    from launcher.launch import _signals

    return _signals.signals_end_launch()
