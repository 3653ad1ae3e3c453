"""A world of ranks that torchrun, deepspeed, accelerate, srun or mpirun has started."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import LaunchError, TrainctlError
from launcher.launch._environment import ATTEMPT, agent_has_store, attempt, store_variables
from launcher.launch._node import Opened

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from launcher.run_dir import RunDir

# Rank, size, rank on the machine, ranks on the machine. srun's own variables of a *step*: a batch
# script has SLURM_PROCID and SLURM_NTASKS, but is no rank.
_FAMILIES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
}
# Where Slurm and MPI give no port: one of the job's own, below the range of outgoing connections.
_FIRST_PORT, _PORTS = 20_000, 10_000
_JOIN_S = 300.0
_RUN, _READ = "trainctl/run", "trainctl/read"
_LEAVE_S, _POLL_S = 30.0, 0.05


@dataclass(slots=True)
class OuterWorld:
    """This process's place in a world that another program has started; it starts one rank.

    Attributes:
        program: The program, for messages.
        rank: Rank of this process.
        size: Number of ranks.
        local_rank: Rank on this machine.
        local_size: Number of ranks on this machine; None where the program does not say.
        host: Where the store is.
        port: Its port.
        has_store: True if the program itself keeps the store.
        attempt: Number of restarts by the program: the store still has the keys of earlier ones.
    """

    program: str
    rank: int
    size: int
    local_rank: int
    local_size: int | None
    host: str
    port: int
    has_store: bool = False
    attempt: int = 0
    _store: Store | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def has_others(self) -> bool:
        return True

    @contextmanager
    def opened(self, run_dir: RunDir) -> Iterator[Opened]:
        if self.is_first:
            self._send({"path": str(run_dir.path)})
        here = {} if self.local_size is None else {"LOCAL_WORLD_SIZE": str(self.local_size)}
        variables = {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            **here,
            # Without a descriptor: a store of ours stays in this process.
            **store_variables(self.host, self.port),
            ATTEMPT: str(self.attempt),
        }
        yield Opened([variables])

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release, at the end, ranks that still wait for a run: rank 0 did not start one."""
        status = 1
        try:
            yield
            status = 0
        except TrainctlError as error:
            status = error.exit_status
            raise
        finally:
            with suppress(LaunchError):
                self._send({"status": status})
                self._await_readers()

    def find_run(self) -> Path | int:
        """Return the run directory that rank 0 made, or the exit status of its failure.

        Raises:
            LaunchError: Rank 0 did not answer.
        """
        try:
            message = json.loads(self._connected().get(_RUN))
            self._connected().add(_READ, 1)
        except RuntimeError as error:  # DistStoreError and DistNetworkError are such
            raise LaunchError(
                f"rank {self.rank} of {self.size} (started by {self.program}) got no run from rank "
                f"0 at {self.host}:{self.port} within {_JOIN_S:g} s: {error}"
            ) from error
        return Path(message["path"]) if "path" in message else int(message["status"])

    def _await_readers(self) -> None:
        # A store of ours ends with this process: a rank that starts later would find none.
        deadline = time.monotonic() + _LEAVE_S
        with suppress(RuntimeError):
            while self._connected().add(_READ, 0) < self.size - 1 and time.monotonic() < deadline:
                time.sleep(_POLL_S)

    def _send(self, message: Mapping[str, object]) -> None:
        try:
            self._connected().set(_RUN, json.dumps(message))
        except RuntimeError as error:
            raise LaunchError(f"rank 0 cannot open {self.host}:{self.port}: {error}") from error

    def _connected(self) -> Store:
        # torch in a launcher: only here, because the store that these programs give is torch's.
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        if self._store is None:
            server = TCPStore(
                self.host,
                self.port,
                is_master=self.is_first and not self.has_store,
                timeout=timedelta(seconds=_JOIN_S),
                wait_for_workers=False,
            )
            self._store = PrefixStore(f"launch/{self.attempt}", server)
        return self._store


def outer_world(environment: Mapping[str, str] = os.environ) -> OuterWorld | None:
    """Return the world that this process was started in; None if it is alone.

    Args:
        environment: The process's environment.

    Raises:
        LaunchError: The variables are no numbers, or do not say where rank 0 is.
    """
    for program, names in _FAMILIES.items():
        rank_name, size_name, local_name, here_name = names
        if rank_name not in environment or size_name not in environment:
            continue
        size = _number(environment, size_name)
        if size == 1:
            continue
        rank = _number(environment, rank_name)
        local = _number(environment, local_name) if local_name in environment else 0
        here = _number(environment, here_name) if here_name in environment else None
        if here is None and "LOCAL_SIZE" in environment:  # as deepspeed says it
            here = _number(environment, "LOCAL_SIZE")
        host, port = _address(environment, program, all_here=here == size)
        return OuterWorld(
            program,
            rank,
            size,
            local,
            here,
            host,
            port,
            agent_has_store(environment),
            attempt(environment) or 0,
        )
    return None


def _address(environment: Mapping[str, str], program: str, *, all_here: bool) -> tuple[str, int]:
    host = environment.get("MASTER_ADDR")
    if host is None and "SLURM_STEP_NODELIST" in environment:
        host = first_host(environment["SLURM_STEP_NODELIST"])
    if host is None and all_here:
        host = "127.0.0.1"
    if host is None:
        raise LaunchError(
            f"{program} started this process as one of several ranks, but nothing says where rank "
            "0 is: set MASTER_ADDR (and MASTER_PORT) to an address that all nodes reach"
        )
    if "MASTER_PORT" in environment:
        return host, _number(environment, "MASTER_PORT")
    job = environment.get("SLURM_JOB_ID", str(os.getppid()))
    step = environment.get("SLURM_STEP_ID", "0")
    seed = int(re.sub(r"\D", "", job) or 0) + 101 * int(re.sub(r"\D", "", step) or 0)
    return host, _FIRST_PORT + seed % _PORTS


def first_host(nodes: str) -> str:
    """Return the first host of a list in Slurm's form, e.g. `node[03-07,11],login1`."""
    match = re.match(r"([^\[,]*)\[([^\],-]*)[^\]]*\]([^,\[]*)", nodes)
    if match:
        return "".join(match.groups())
    return nodes.partition(",")[0]


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise LaunchError(
            f"the environment variable {name} must be a number, but is {environment[name]!r}; "
            "unset it, or start trainctl with torchrun, deepspeed, srun or mpirun"
        ) from None
