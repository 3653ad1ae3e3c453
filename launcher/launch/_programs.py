"""Launchers of other projects that start `trainctl join` once for each rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from launcher.launch._options import ProcessesOption, no_search, python_module
from launcher.launch._world import share_of_cores

if TYPE_CHECKING:
    from launcher.contracts import ConfigView
    from launcher.errors import Problem


class ProgramOption(ProcessesOption):
    """A program that starts the ranks; each rank has a trainctl launcher that watches it."""

    nodes: int = Field(gt=0, le=4096)
    """Machines, with as many ranks on each."""
    flags: list[str]
    """Further options of the program."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        yield from no_search(self.kind, config)

    @property
    @override
    def ranks(self) -> int:
        return self.nodes * self.processes

    @override
    def environment(self) -> Mapping[str, str]:
        variables = dict(super().environment())
        here = {"LOCAL_WORLD_SIZE": str(self.processes)}
        if (threads := self.threads or share_of_cores(here)) is not None:
            # Otherwise torchrun sets it to 1, and warns.
            variables["OMP_NUM_THREADS"] = str(threads)
        return variables

    @override
    def rank_environments(self, node: int = 0) -> Sequence[Mapping[str, str]]:
        del node
        # The program sets them.
        return ({},)

    def agent(self, module: str) -> list[str]:
        """Return the start of the command: a module of ours around the program's own."""
        return python_module(f"launcher.launch.{module}")
