"""Ranks on this machine, as child processes of the launcher."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from typing_extensions import override

from launcher.errors import LaunchError
from launcher.launch._options import ProcessesOption

# Device files of NVIDIA (with Jetson and WSL) and AMD: without one of them torch finds no CUDA
# device, which is known here without importing torch.
_DRIVERS = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg", "kfd")


def _present(driver: str) -> bool:
    return any(Path("/dev").glob(driver))


class Local(ProcessesOption):
    """One or more processes on this machine."""

    kind: Literal["local"]
    max_restarts: int = Field(ge=0, le=1000)
    """Restarts of all ranks after one was killed, lost its connection or hung; each continues from
    the newest good checkpoint. Other errors, and failures at the same step again, end the run."""

    @property
    @override
    def restarts(self) -> int:
        return self.max_restarts

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
    def network(self) -> Mapping[str, str]:
        # Without the variable gloo resolves the host name, which is slow, or fails where DNS does
        # not know it.
        names = {name for _, name in socket.if_nameindex()}
        loopback = next((name for name in ("lo", "lo0") if name in names), None)
        if "GLOO_SOCKET_IFNAME" in os.environ or loopback is None:
            return {}
        return {"GLOO_SOCKET_IFNAME": loopback}
