"""Start the ranks of a run directory, wait for them and write the result."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import BinaryIO

from launcher.config.effects import without_effect
from launcher.config.schema import RunConfig
from launcher.contracts import recorded
from launcher.errors import LaunchError, TrainctlError
from launcher.launch import _outcome
from launcher.launch._early import EarlyRank
from launcher.launch._environment import HEARTBEAT_FD, LAUNCHER_PID, STORE_FD, without_rank
from launcher.launch._heartbeat import Heartbeats
from launcher.launch._lock import name_ranks
from launcher.launch._outcome import Result
from launcher.launch._processes import RankProcess, signals_held, start_process
from launcher.launch._supervisor import Supervisor
from launcher.launch._watch import Watch
from launcher.run_dir import RunDir


def start(
    config: RunConfig,
    run_dir: RunDir,
    lock: Sequence[int],
    early: EarlyRank | None = None,
    *,
    quiet: bool = False,
    program: Sequence[str] | None = None,
) -> Result:
    """Run the ranks of a run directory to the end; raise the first failure of a rank.

    `program` is the command of each rank, None for that of the launch option.
    """
    started = time.monotonic()
    try:
        _outcome.clear(run_dir)
        with recorded(config) as reads:
            result = _run(config, run_dir, lock, early, quiet=quiet, program=program)
    except TrainctlError as error:
        _outcome.write_result(run_dir, error, time.monotonic() - started)
        raise
    except OSError as error:
        place = error.filename or run_dir.path
        raise LaunchError(f"cannot write {place}: {error.strerror}") from error
    # The launcher reads settings that ranks do not (launch.*), and vice versa.
    unread = [key for key in reads.unread() if key in result.unread]
    unused = without_effect(config, unread, run_dir.read_provenance())
    result = replace(result, without_effect=unused)
    _outcome.write_result(run_dir, result, time.monotonic() - started)
    return result


def _run(
    config: RunConfig,
    run_dir: RunDir,
    lock: Sequence[int],
    early: EarlyRank | None,
    *,
    quiet: bool,
    program: Sequence[str] | None,
) -> Result:
    with ExitStack() as stack:
        heartbeats = Heartbeats(config.launch.ranks)
        stack.callback(heartbeats.close)
        supervisor = Supervisor(run_dir, Watch(heartbeats, config.launch.timeout_s))
        with supervisor.forwarding():
            with signals_held():
                _start_ranks(
                    config,
                    run_dir,
                    lock,
                    ranks=supervisor.ranks,
                    heartbeats=heartbeats,
                    early=early,
                    quiet=quiet,
                    program=program,
                )
            name_ranks(lock, [rank.pid for rank in supervisor.ranks])
            supervisor.wait()
        return _outcome.outcome(run_dir, supervisor.ranks)


def _start_ranks(
    config: RunConfig,
    run_dir: RunDir,
    lock: Sequence[int],
    *,
    ranks: list[RankProcess],
    heartbeats: Heartbeats,
    early: EarlyRank | None,
    quiet: bool,
    program: Sequence[str] | None,
) -> None:
    """Start the processes, and append each to `ranks`."""
    # Appended one by one: if the next one fails to start, the supervisor kills those before it.
    command = list(program or config.launch.command(run_dir))
    environment = {**without_rank(), **config.launch.environment()}
    common = {LAUNCHER_PID: str(os.getpid()), HEARTBEAT_FD: str(heartbeats.descriptor)}
    descriptors = [*lock, heartbeats.descriptor]
    environments = config.launch.rank_environments()
    folder = _folder(run_dir)
    with ExitStack() as stack:
        first: dict[str, str] = {}
        if len(environments) > 1:
            # A port that is only chosen here can be taken by another program before rank 0 binds
            # it: it is bound here, and rank 0 inherits the socket. Loopback, because the store
            # has no authentication.
            store = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
            host, port = store.getsockname()
            common |= {"MASTER_ADDR": host, "MASTER_PORT": str(port), STORE_FD: ""}
            first = {STORE_FD: str(store.fileno())}
            descriptors.append(store.fileno())
        for rank, given in enumerate(environments):
            variables = {**common, **given, **(first if rank == 0 else {})}
            process = None
            if rank == 0 and early is not None:
                process = early.take(
                    command,
                    environment,
                    variables=variables,
                    folder=folder,
                    descriptors=descriptors,
                )
            if process is None:
                # Rank 0 has the console; what the others print is in their logs.
                to_log = rank > 0 or quiet
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


def _folder(run_dir: RunDir) -> str | None:
    # Relative paths of the config belong to the folder of the first launch, and a resume may be
    # called from anywhere.
    try:
        folder = json.loads(run_dir.env.read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return folder if isinstance(folder, str) and pathlib.Path(folder).is_dir() else None
