"""The ranks that one launcher starts of a run, and the store where all of its ranks meet."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launcher.errors import LaunchError
from launcher.launch._environment import store_variables
from launcher.run_dir import write_atomically

if TYPE_CHECKING:
    from launcher.contracts import LaunchOption
    from launcher.run_dir import RunDir

# A node with a store answers at once.
_CONNECT_S = 2.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Opened:
    """Environment and inherited resources with which the processes of a node join the others.

    Attributes:
        environments: Environment variables of each process: RANK, MASTER_ADDR, …
        descriptors: File descriptors that they inherit.
        started: To be called when the processes have started.
        command: Command of each process; None for that of a rank of the launch option.
        are_ranks: False if the process is a program that starts the ranks, each under a launcher
            of its own that watches it.
    """

    environments: Sequence[Mapping[str, str]]
    descriptors: Sequence[int] = ()
    started: Callable[[], None] = field(default=lambda: None)
    command: Sequence[str] | None = None
    are_ranks: bool = True


class Node(Protocol):
    """The part of a run's ranks that one launcher starts."""

    @property
    def is_first(self) -> bool:
        """True for the launcher of rank 0, which owns the run directory."""

    @property
    def has_others(self) -> bool:
        """True if other launchers start ranks of the same run."""

    def opened(self, run_dir: RunDir) -> AbstractContextManager[Opened]:
        """Give the processes a store to meet in, for as long as they run.

        Raises:
            LaunchError: The first launcher was not found within `launch.timeout_s`.
        """


@dataclass(frozen=True, slots=True)
class WholeRun:
    """All ranks of a run, on this machine.

    Attributes:
        option: Its `launch`.
        command: Command of each rank; None for that of the option.
        is_in_program: The program that starts the ranks has started this process.
    """

    option: LaunchOption
    command: Sequence[str] | None = None
    is_in_program: bool = False

    @property
    def is_first(self) -> bool:
        return True

    @property
    def has_others(self) -> bool:
        return False

    @contextmanager
    def opened(self, run_dir: RunDir) -> Iterator[Opened]:
        program = None if self.is_in_program else self.option.program(run_dir)
        if program is not None:
            yield Opened([{}], command=program, are_ranks=False)
            return
        environments = self.option.rank_environments()
        if len(environments) == 1:
            yield Opened(environments, command=self.command)
            return
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as store:
            # Loopback, because the store has no authentication.
            yield replace(_with_store(environments, store, "127.0.0.1"), command=self.command)


@dataclass(frozen=True, slots=True)
class OneOfNodes:
    """The ranks of one of several machines, which share the run directory."""

    option: LaunchOption
    number: int

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def has_others(self) -> bool:
        return True

    @contextmanager
    def opened(self, run_dir: RunDir) -> Iterator[Opened]:
        environments = self.option.rank_environments(self.number)
        meeting = run_dir.rank_result(0).parent / "store.json"
        if self.is_first:
            with ExitStack() as stack:
                store = stack.enter_context(socket.create_server(("", 0), backlog=4096))
                host = self.option.address()
                text = json.dumps({"host": host, "port": store.getsockname()[1]})
                write_atomically(meeting, text)
                # A later attempt must not find the store of this one.
                stack.callback(meeting.unlink, missing_ok=True)
                yield _with_store(environments, store, host)
            return
        deadline = time.monotonic() + self.option.timeout_s
        while (found := _reachable(_read(meeting))) is None:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"node 0 was not found within launch.timeout_s={self.option.timeout_s:g} s: it "
                    f"writes its address to {meeting}. Start it with `trainctl join "
                    f"{run_dir.path} --node-rank 0`; if it runs, let launch.interface name a "
                    "network that all nodes share"
                )
            time.sleep(_POLL_S)
        host, port = found
        common = store_variables(host, port)
        yield Opened([{**each, **common} for each in environments])


def _with_store(
    environments: Sequence[Mapping[str, str]], store: socket.socket, host: str
) -> Opened:
    # Bound here and inherited by rank 0: the port cannot be taken in between.
    port: int = store.getsockname()[1]
    variables = [{**store_variables(host, port), **each} for each in environments]
    variables[0] |= store_variables(host, port, store.fileno())
    # Closed once rank 0 has it: otherwise ranks could connect to a store that has died.
    return Opened(variables, [store.fileno()], store.close)


def _read(path: Path) -> tuple[str, int] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return str(values["host"]), int(values["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reachable(address: tuple[str, int] | None) -> tuple[str, int] | None:
    """Return the address if something listens there: the file of a dead launcher may be left."""
    if address is None:
        return None
    try:
        with socket.create_connection(address, timeout=_CONNECT_S):
            return address
    except OSError:
        return None
