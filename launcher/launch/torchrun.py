"""Ranks that torchrun's agent starts and restarts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field
from typing_extensions import override

from launcher.errors import Problem
from launcher.launch._options import join_command
from launcher.launch._programs import ProgramOption

if TYPE_CHECKING:
    from launcher.contracts import ConfigView
    from launcher.run_dir import RunDir


# With the agent's own store the ranks of an attempt could read the addresses of an earlier one: of
# eleven killed ranks three were restarted by one restart.
_OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Torchrun(ProgramOption):
    """torchrun on each machine: rendezvous and restarts are those of torch.distributed.elastic."""

    kind: Literal["torchrun"]
    min_nodes: int | None = Field(gt=0, le=4096)
    """Fewest machines with which the run starts or continues after a loss, with the same global
    batch; null for all `nodes`."""
    max_restarts: int = Field(ge=0, le=1000)
    """Restarts of all ranks after one was killed, lost its connection or hung; each continues from
    the newest good checkpoint."""
    rdzv_backend: Literal["c10d", "static", "etcd-v2"]
    """Store in which the agents of several nodes find each other."""
    rdzv_endpoint: str | None
    """`HOST:PORT` of the rendezvous, an address of the first node; null with one node."""
    rdzv_id: str | None
    """Name of the job at the rendezvous, the same on all nodes; null takes the run's id."""
    rdzv_conf: str | None
    """Settings of the rendezvous, `KEY=VALUE,…`; for example `last_call_timeout=10`, the seconds to
    wait for more than `min_nodes`, or on the first node `is_host=1`, where its host name is not
    the endpoint's."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.nodes > 1 and self.rdzv_endpoint is None:
            yield Problem(
                "launch.rdzv_endpoint",
                "must be HOST:PORT of the first node, because launch.nodes is "
                f"{self.nodes}; for example launch.rdzv_endpoint=node0:29400",
            )
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            message = f"must be at most launch.nodes={self.nodes}, but is {self.min_nodes}"
            yield Problem("launch.min_nodes", message)
        elif self._is_elastic and self.rdzv_backend == "static":
            yield Problem(
                "launch.rdzv_backend",
                "must be c10d or etcd-v2 for a number of nodes that may change (launch.min_nodes)",
            )

    @property
    def _is_elastic(self) -> bool:
        return self.min_nodes not in {None, self.nodes}

    @override
    def resized(self, ranks: int) -> Self | None:
        nodes, rest = divmod(ranks, self.processes)
        if ranks == self.ranks:
            return self
        if rest or not (self.min_nodes or self.nodes) <= nodes < self.nodes:
            return None
        return self.model_copy(update={"nodes": nodes, "min_nodes": nodes})

    @override
    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **_OWN_STORE}

    @override
    def program(self, run_dir: RunDir) -> Sequence[str]:
        return [*self.agent("_torchrun_agent"), *self._flags(run_dir), *self._worker(run_dir)]

    @override
    def hand_over(self, run_dir: RunDir) -> str | None:
        if self.nodes == 1:
            return None
        folder = shlex.quote(str(Path.cwd()))
        flags = [*self._flags(run_dir), *self._worker(run_dir)]
        variables = [f"{name}={value}" for name, value in _OWN_STORE.items()]
        command = shlex.join([*variables, "torchrun", *flags])
        return (
            f"the run is prepared in {run_dir.path}; start it on each of the {self.nodes} nodes:\n"
            f"  cd {folder} && {command}"
        )

    def _flags(self, run_dir: RunDir) -> list[str]:
        nodes = f"{self.min_nodes}:{self.nodes}" if self._is_elastic else str(self.nodes)
        flags = [
            f"--nnodes={nodes}",
            f"--nproc-per-node={self.processes}",
            f"--max-restarts={self.max_restarts}",
        ]
        if self.nodes == 1 and self.rdzv_endpoint is None:
            return [*flags, "--standalone", *self.flags]
        return [
            *flags,
            f"--rdzv-backend={self.rdzv_backend}",
            f"--rdzv-endpoint={self.rdzv_endpoint or ''}",
            f"--rdzv-id={self.rdzv_id or run_dir.id}",
            *([] if self.rdzv_conf is None else [f"--rdzv-conf={self.rdzv_conf}"]),
            *self.flags,
        ]

    def _worker(self, run_dir: RunDir) -> list[str]:
        return ["--no-python", *join_command(run_dir)]
