"""Start the ranks of a run directory, wait for them and write the result."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import BinaryIO

from launcher.config.effects import without_effect
from launcher.config.schema import RunConfig
from launcher.contracts import recorded
from launcher.errors import Hang, LaunchError, TrainctlError
from launcher.launch import StartOptions, _outcome
from launcher.launch._early import folder_of
from launcher.launch._environment import (
    ATTEMPT,
    HEARTBEAT_FD,
    LAUNCHER_PID,
    attempt,
    without_rank,
)
from launcher.launch._heartbeat import Heartbeats
from launcher.launch._lock import name_ranks
from launcher.launch._node import Node, Opened, WholeRun
from launcher.launch._outcome import Result
from launcher.launch._processes import RankProcess, signals_held, start_process
from launcher.launch._record import record_failed
from launcher.launch._restarts import Attempt, with_restarts
from launcher.launch._supervisor import Supervisor
from launcher.launch._watch import Watch
from launcher.run_dir import RunDir


def start(
    config: RunConfig,
    run_dir: RunDir,
    lock: Sequence[int],
    options: StartOptions,
) -> Result:
    """Run the ranks of a run directory to the end; raise the first failure of a rank."""
    started = time.monotonic()

    def run(this: Attempt) -> Result:
        _outcome.clear(run_dir)
        return run_node(config, run_dir, options, lock, this)

    try:
        with recorded(config) as reads:
            result, restarts = with_restarts(run, run_dir, options.restarts)
    except TrainctlError as error:
        _outcome.write_result(run_dir, error, time.monotonic() - started)
        raise
    except OSError as error:
        place = error.filename or run_dir.path
        raise LaunchError(f"cannot write {place}: {error.strerror}") from error
    # The launcher reads settings that ranks do not (launch.*), and vice versa.
    unread = [key for key in reads.unread() if key in result.unread]
    if options.node is not None:
        # The process that prepared the run read them, as the requests of a Slurm job.
        unread = [key for key in unread if key.partition(".")[0] != "launch"]
    unused = without_effect(config, unread, run_dir.read_provenance())
    result = replace(result, without_effect=unused, restarts=restarts)
    _outcome.write_result(run_dir, result, time.monotonic() - started)
    return result


def run_node(
    config: RunConfig,
    run_dir: RunDir,
    options: StartOptions,
    lock: Sequence[int] = (),
    this: Attempt | None = None,
) -> Result:
    """Run the ranks of one node to the end; raise the first failure of a rank of any node."""
    this = this or Attempt()
    node = options.node or WholeRun(config.launch)
    with ExitStack() as stack:
        heartbeats = Heartbeats(config.launch.ranks)
        stack.callback(heartbeats.close)
        opened = stack.enter_context(node.opened(run_dir))
        watch = None
        if opened.are_ranks:
            watch = Watch(heartbeats, config.launch.timeout_s, has_others=node.has_others)
        supervisor = Supervisor(run_dir, watch)
        stack.callback(_note, this, heartbeats, supervisor)
        if node.has_others:
            supervisor.failed_elsewhere = _outcome.FailuresElsewhere(run_dir, supervisor.ranks)
        with supervisor.forwarding():
            with signals_held():
                _start_ranks(
                    config,
                    run_dir,
                    opened,
                    descriptors=[*lock, *opened.descriptors, heartbeats.descriptor],
                    ranks=supervisor.ranks,
                    heartbeats=heartbeats,
                    options=options,
                    number=this.number,
                )
            opened.started()
            if lock:
                name_ranks(lock, [rank.pid for rank in supervisor.ranks])
            hang = _wait(supervisor, node)
        if hang is not None:
            raise _outcome.cause_elsewhere(run_dir, supervisor.ranks) or hang
        try:
            return _outcome.outcome(run_dir, supervisor.ranks, has_others=node.has_others)
        except Hang as error:
            raise supervisor.explained(error, config.launch.timeout_s) from None


def _note(this: Attempt, heartbeats: Heartbeats, supervisor: Supervisor) -> None:
    this.step, this.stopping = heartbeats.furthest(), supervisor.stopping


def _wait(supervisor: Supervisor, node: Node) -> Hang | None:
    """Wait for the ranks; return a hang that another node's launcher may explain."""
    try:
        supervisor.wait()
    except Hang as error:
        if not node.has_others:
            raise
        for rank in error.missing:
            record_failed(supervisor.run_dir, rank, error)
        return error
    return None


def _start_ranks(
    config: RunConfig,
    run_dir: RunDir,
    opened: Opened,
    *,
    descriptors: Sequence[int],
    ranks: list[RankProcess],
    heartbeats: Heartbeats,
    options: StartOptions,
    number: int,
) -> None:
    """Start the processes, and append each to `ranks`."""
    # Appended one by one: if the next one fails to start, the supervisor kills those before it.
    command = list(opened.command or config.launch.command(run_dir))
    environment = {**without_rank(), **config.launch.environment()}
    common = {
        LAUNCHER_PID: str(os.getpid()),
        HEARTBEAT_FD: str(heartbeats.descriptor),
        # torchrun may have started this launcher: its restarts count, too.
        ATTEMPT: str(number + (attempt() or 0)),
    }
    folder = folder_of(run_dir)
    with ExitStack() as stack:
        for given in opened.environments:
            rank = int(given.get("RANK", "0"))
            variables = {**common, **given}
            process = None
            if rank == 0 and options.early is not None:
                process = options.early.take(
                    command,
                    environment,
                    variables=variables,
                    folder=folder,
                    descriptors=descriptors,
                )
            if process is None:
                # Rank 0 has the console; what the others print is in their logs.
                to_log = rank > 0 or options.quiet
                output = stack.enter_context(_open_log(run_dir.log(rank))) if to_log else None
                process = start_process(
                    command,
                    {**environment, **variables},
                    rank=rank,
                    folder=folder,
                    descriptors=descriptors,
                    output=output,
                )
            ranks.append(process)


def _open_log(path: pathlib.Path) -> BinaryIO:
    try:
        path.parent.mkdir(exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise LaunchError(f"cannot write {path}: {error.strerror}") from error
