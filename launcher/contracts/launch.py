"""Base class of the options of launching."""

from __future__ import annotations

import shlex
import socket
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from launcher.contracts.options import DEVICES, Option

if TYPE_CHECKING:
    from launcher.run_dir import RunDir


class LaunchOption(Option):
    """Start of the ranks: their number and device."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    """Device of the ranks; `auto` takes CUDA, then MPS, then the CPU."""
    threads: int | None = Field(gt=0, le=1024)
    """Threads of one CPU operation, per rank; null uses the default of torch for one rank, and
    divides the cores among several ranks."""
    timeout_s: float = Field(gt=0, le=86_400)
    """Seconds that a rank may take for one optimizer step, one micro-batch of an evaluation or one
    collective; a run that takes longer hangs and is ended."""

    @property
    @abstractmethod
    def ranks(self) -> int:
        """Number of processes in the whole run."""

    def resized(self, ranks: int) -> Self | None:
        """Return the option for another number of ranks, with which a program may start the run.

        Returns:
            None where the run has one number of ranks only, and this is not it.
        """
        return self if ranks == self.ranks else None

    def possible_devices(self) -> Sequence[str]:
        """Kinds of device that the ranks may use; several for `auto`."""
        # Decided without torch, whose import takes longer than all other checks of a config.
        return DEVICES if self.device == "auto" else (self.device,)

    @abstractmethod
    def command(self, run_dir: RunDir) -> Sequence[str]:
        """Return the command of one rank."""

    def program(self, run_dir: RunDir) -> Sequence[str] | None:
        """Return the command of a program that starts the ranks; None where the launcher does."""
        del run_dir
        return None

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Return environment variables of every rank, in addition to the launcher's."""

    @property
    def node_count(self) -> int:
        """Number of machines, on each of which one launcher starts ranks."""
        return 1

    @property
    def restarts(self) -> int:
        """Number of times that the launcher starts all ranks again after a failure."""
        return 0

    def address(self) -> str:
        """Return the address of this machine that the other nodes reach.

        Raises:
            LaunchError: The configured network does not exist here.
        """
        return socket.gethostname()

    def hand_over(self, run_dir: RunDir) -> str | None:
        """Let launchers on the nodes run the ranks of a run directory.

        Returns:
            What to print: how they are started, or the job that starts them. None where this
            process starts the ranks.

        Raises:
            LaunchError: They cannot be started.
        """
        del run_dir
        return None

    def await_end(self, run_dir: RunDir) -> bool:
        """Wait for the ranks that `hand_over` has started.

        Returns:
            False if that is not configured.

        Raises:
            TrainctlError: They ended without a result, or a signal ended the wait.
        """
        del run_dir
        return False

    def preview(self, run_dir: RunDir) -> str:
        """Return what would be started, for `--dry-run`."""
        words = self.program(run_dir) or self.command(run_dir)
        variables = (f"{name}={shlex.quote(value)}" for name, value in self.environment().items())
        return f"command    {' '.join(variables)} {shlex.join(words)}"

    @abstractmethod
    def rank_environments(self, node: int = 0) -> Sequence[Mapping[str, str]]:
        """Return the environment variables (RANK, …) of each rank that the launcher starts.

        Args:
            node: The machine, from 0.
        """
