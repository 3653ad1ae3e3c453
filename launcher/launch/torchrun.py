"""Ranks that torchrun's agent starts and restarts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.errors import Problem
from launcher.launch._options import join_command
from launcher.launch._programs import ProgramOption

if TYPE_CHECKING:
    from launcher.contracts import ConfigView
    from launcher.run_dir import RunDir


class Torchrun(ProgramOption):
    """torchrun on each machine: rendezvous and restarts are those of torch.distributed.elastic."""

    kind: Literal["torchrun"]
    max_restarts: int = Field(ge=0, le=1000)
    """Restarts of all ranks after one has failed; each continues from the newest checkpoint."""
    rdzv_backend: Literal["c10d", "static", "etcd-v2"]
    """Store in which the agents of several nodes find each other."""
    rdzv_endpoint: str | None
    """`HOST:PORT` of the rendezvous, an address of the first node; null with one node."""
    rdzv_id: str | None
    """Name of the job at the rendezvous, the same on all nodes; null takes the run's id."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.nodes > 1 and self.rdzv_endpoint is None:
            yield Problem(
                "launch.rdzv_endpoint",
                "must be HOST:PORT of the first node, because launch.nodes is "
                f"{self.nodes}; for example launch.rdzv_endpoint=node0:29400",
            )

    @override
    def program(self, run_dir: RunDir) -> Sequence[str]:
        return [*self.agent("_torchrun_agent"), *self._flags(run_dir), *self._worker(run_dir)]

    @override
    def hand_over(self, run_dir: RunDir) -> str | None:
        if self.nodes == 1:
            return None
        folder = shlex.quote(str(Path.cwd()))
        flags = [*self._flags(run_dir), *self._worker(run_dir)]
        command = shlex.join(["torchrun", *flags])
        return (
            f"the run is prepared in {run_dir.path}; start it on each of the {self.nodes} nodes:\n"
            f"  cd {folder} && {command}"
        )

    def _flags(self, run_dir: RunDir) -> list[str]:
        flags = [
            f"--nnodes={self.nodes}",
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
            *self.flags,
        ]

    def _worker(self, run_dir: RunDir) -> list[str]:
        return ["--no-python", *join_command(run_dir)]
