"""Ranks on this machine, as child processes of the launcher."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import LaunchOption
from launcher.errors import LaunchError
from launcher.launch._environment import common_to_ranks

if TYPE_CHECKING:
    from launcher.run_dir import RunDir

_WORKER = "launcher.launch._worker"
# Device files of NVIDIA (with Jetson and WSL) and AMD: without one of them torch finds no CUDA
# device, which is known here without importing torch.
_DRIVERS = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg", "kfd")


def _present(driver: str) -> bool:
    return any(Path("/dev").glob(driver))


class Local(LaunchOption):
    """One or more processes on this machine."""

    kind: Literal["local"]
    processes: int = Field(gt=0, le=4096)
    """Ranks to start."""

    @property
    @override
    def ranks(self) -> int:
        return self.processes

    @override
    def possible_devices(self) -> Sequence[str]:
        """Return the configured kind; only the CPU where Linux has no accelerator."""
        if self.device == "auto" and sys.platform == "linux" and not any(map(_present, _DRIVERS)):
            return ("cpu",)
        return super().possible_devices()

    @override
    def preflight(self) -> None:

        missing = {
            "cuda": not any(map(_present, _DRIVERS)),
            "mps": True,
        }
        if sys.platform == "linux" and missing.get(self.device, False):
            raise LaunchError(
                f"launch.device must be a device of this machine, but is {self.device}, and /dev "
                "has no device file of such a driver; write launch.device=auto or launch.device=cpu"
            )

    @override
    def command(self, run_dir: RunDir) -> Sequence[str]:
        # -P: a launcher/ or a random.py in the user's folder must not be taken for ours or
        # Python's.
        return [sys.executable, "-P", "-m", _WORKER, str(run_dir.path)]

    @override
    def environment(self) -> Mapping[str, str]:

        variables = common_to_ranks()
        if self.threads is not None:
            variables["OMP_NUM_THREADS"] = str(self.threads)
        return variables

    @override
    def rank_environments(self) -> Sequence[Mapping[str, str]]:
        if self.processes == 1:
            return ({},)
        size = str(self.processes)
        common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, **_interface()}
        return [
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.processes)
        ]


def _interface() -> Mapping[str, str]:
    # Without the variable gloo resolves the host name, which is slow, or fails where DNS does not
    # know it.
    names = {name for _, name in socket.if_nameindex()}
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if "GLOO_SOCKET_IFNAME" in os.environ or loopback is None:
        return {}
    return {"GLOO_SOCKET_IFNAME": loopback}
