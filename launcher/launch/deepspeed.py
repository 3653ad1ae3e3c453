"""Ranks that the deepspeed launcher starts."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.errors import LaunchError, Problem
from launcher.launch._environment import LAUNCHER_PID
from launcher.launch._options import join_command
from launcher.launch._programs import ProgramOption

if TYPE_CHECKING:
    from launcher.contracts import ConfigView
    from launcher.run_dir import RunDir


class Deepspeed(ProgramOption):
    """The deepspeed launcher: on this machine, or through pdsh, MPI or Slurm on several."""

    kind: Literal["deepspeed"]
    hostfile: str | None
    """File with a line `HOST slots=N` for each machine; null starts all ranks on this one."""
    include: str | None
    """Hosts and slots of the hostfile to use, e.g. `node0@node1:0,2`; null takes the first
    `processes` slots of the first `nodes` hosts."""
    exclude: str | None
    """Hosts and slots of the hostfile not to use."""
    launcher: Literal["pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm"]
    """Program that reaches the other machines."""
    master_addr: str | None
    """Address of the first host; null lets deepspeed ask that host."""
    master_port: int | None = Field(gt=0, le=65_535)
    """Port for the ranks to meet; null takes a free one here, and 29500 with a hostfile."""
    bind_cores_to_rank: bool
    """Bind each rank to its share of the cores, with numactl."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.nodes > 1 and self.hostfile is None:
            yield Problem(
                "launch.hostfile",
                f"must name the machines, one `HOST slots=N` a line, because launch.nodes is "
                f"{self.nodes}",
            )
        if self.include is not None and self.exclude is not None:
            yield Problem("launch.exclude", "deepspeed takes include or exclude, but not both")

    @override
    def preflight(self) -> None:
        if self.hostfile is not None and not Path(self.hostfile).is_file():
            raise LaunchError(f"launch.hostfile={self.hostfile} does not exist")
        if self.nodes > 1 and self.launcher == "pdsh" and shutil.which("pdsh") is None:
            raise LaunchError(
                "launch.launcher=pdsh needs the program pdsh, which was not found; install it, or "
                "use another of deepspeed's launchers"
            )
        if self.bind_cores_to_rank and shutil.which("numactl") is None:
            raise LaunchError(
                "launch.bind_cores_to_rank=true needs the program numactl, which was not found"
            )

    @override
    def environment(self) -> Mapping[str, str]:
        # Otherwise deepspeed looks for a GPU, and counts the ranks of this machine by it.
        chosen = {"DS_ACCELERATOR": "cpu"} if self.device == "cpu" else {}
        return {**super().environment(), **chosen}

    @override
    def program(self, run_dir: RunDir) -> Sequence[str]:
        words = self.agent("_deepspeed_agent")
        if self.include is None and self.exclude is None:
            words += [f"--num_nodes={self.nodes}", f"--num_gpus={self.processes}"]
        given = {"include": self.include, "exclude": self.exclude, "master_addr": self.master_addr}
        words += [f"--{name}={value}" for name, value in given.items() if value is not None]
        if self.hostfile is not None:
            words += [f"--hostfile={self.hostfile}", f"--launcher={self.launcher}"]
        port = self.master_port
        if port is None and self.hostfile is None:
            port = _free_port()
        if port is not None:
            words.append(f"--master_port={port}")
        if self.bind_cores_to_rank:
            words.append("--bind_cores_to_rank")
        words += ["--log_level=error", *self.flags, "--no_python", "--no_local_rank"]
        # Machines that ssh reaches get no variables: without this one the first rank's launcher
        # would lock the run directory, which ours has locked.
        return [
            *words,
            *("env", f"{LAUNCHER_PID}={os.getpid()}"),
            *join_command(run_dir),
        ]


def _free_port() -> int:
    # deepspeed cannot pass on a socket that is bound; between here and there it may be taken.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
