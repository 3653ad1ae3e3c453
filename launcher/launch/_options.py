"""Options of launching that several kinds share."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from launcher.contracts import LaunchOption
from launcher.errors import LaunchError, Problem
from launcher.launch._environment import common_to_ranks

if TYPE_CHECKING:
    from launcher.contracts import ConfigView
    from launcher.run_dir import RunDir

_WORKER = "launcher.launch._worker"
# ioctl of Linux: the IPv4 address of an interface, at this place of its answer.
_SIOCGIFADDR, _ADDRESS = 0x8915, slice(20, 24)


def python_module(name: str) -> list[str]:
    """Return the command that runs a module of ours."""
    # -P: a launcher/ or a random.py in the user's folder must not be taken for ours or Python's.
    return [sys.executable, "-P", "-m", name]


def join_command(run_dir: RunDir) -> list[str]:
    """Return the command that runs this node's ranks, or one rank, of a prepared run."""
    return [*python_module("launcher"), "join", str(run_dir.path)]


def no_search(kind: str, config: ConfigView) -> Iterator[Problem]:
    """Yield a problem if the micro-batch size is searched for."""
    if config.accumulation.search is not None:
        # Its trials are runs of the ranks that one launcher starts itself.
        message = f"cannot be searched for with launch={kind}"
        cure = "find it with launch=local on one node, and use what decisions.txt has"
        yield Problem("accumulation.kind", f"{message}; {cure}")


class ProcessesOption(LaunchOption):
    """Ranks that a trainctl launcher starts as its child processes."""

    processes: int = Field(gt=0, le=4096)
    """Ranks to start on each machine."""

    @property
    @override
    def ranks(self) -> int:
        return self.processes * self.node_count

    @override
    def command(self, run_dir: RunDir) -> Sequence[str]:
        return [*python_module(_WORKER), str(run_dir.path)]

    @override
    def environment(self) -> Mapping[str, str]:
        variables = common_to_ranks()
        if self.threads is not None:
            variables["OMP_NUM_THREADS"] = str(self.threads)
        return variables

    @override
    def rank_environments(self, node: int = 0) -> Sequence[Mapping[str, str]]:
        if self.ranks == 1:
            return ({},)
        common = {
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.processes),
            **self.network(),
        }
        first = node * self.processes
        return [
            {**common, "RANK": str(first + local), "LOCAL_RANK": str(local)}
            for local in range(self.processes)
        ]

    def network(self) -> Mapping[str, str]:
        """Return environment variables with the network that the ranks use."""
        return {}


class NodesOption(ProcessesOption):
    """Ranks on several machines, which share the folder of the runs."""

    nodes: int = Field(gt=0, le=4096)
    """Machines, with as many ranks on each."""
    interface: str | None
    """Network interface that the nodes share, e.g. `eth0`; null lets gloo and NCCL choose, and uses
    the address of node 0's host name."""

    @property
    @override
    def node_count(self) -> int:
        return self.nodes

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        yield from no_search(self.kind, config)

    @override
    def network(self) -> Mapping[str, str]:
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        chosen = {} if self.interface is None else dict.fromkeys(names, self.interface)
        # What is set on a node is about that node.
        return {name: value for name, value in chosen.items() if name not in os.environ}

    @override
    def address(self) -> str:
        if self.interface is None:
            return super().address()
        name = os.environ.get("GLOO_SOCKET_IFNAME", self.interface)
        request = struct.pack("256s", name.encode()[:15])
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
                answer = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)
        except OSError as error:
            names = ", ".join(sorted(each for _, each in socket.if_nameindex()))
            raise LaunchError(
                f"launch.interface={name} must be an interface of node 0 with an IPv4 address: "
                f"{error.strerror}; it has {names}"
            ) from error
        return socket.inet_ntoa(answer[_ADDRESS])
