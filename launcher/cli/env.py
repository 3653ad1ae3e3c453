"""`trainctl env`: versions, devices, cores and memory of this machine."""

from __future__ import annotations

import os
import platform
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from launcher import __version__
from launcher.cli._arguments import Arguments
from launcher.cli._console import print_json, table
from launcher.launch import total_memory

_PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "accelerate",
    "hydra-core",
    "omegaconf",
    "pydantic",
)
_GIB = 2**30


def main(argv: list[str]) -> int:
    """Print versions, devices, cores and memory."""
    arguments = Arguments(
        "env",
        "",
        "Versions, devices, cores and memory of this machine; quote it when you report a problem.",
        "trainctl env",
        "trainctl env --json",
        json=True,
    )
    flags, _ = arguments.words(argv)
    facts = environment()
    if flags.json:
        print_json(facts)
    else:
        print(table(_rows(facts)))
    return 0


def environment() -> dict[str, Any]:
    """Return the facts as JSON values; None for unknown ones. Imports torch."""
    return {
        "trainctl": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "packages": {name: _version(name) for name in _PACKAGES},
        # Not os.cpu_count(), which includes cores that this process may not use.
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(total_memory() / _GIB, 1),
        **_devices(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    # A report of a broken installation is what the verb is needed for most.
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of CUDA does not load
        return {"cuda": None, "devices": [], "torch_error": f"{type(error).__name__}: {error}"}
    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": card.name,
                "memory_gib": round(card.total_memory / _GIB, 1),
                "capability": f"{card.major}.{card.minor}",
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": platform.processor()})
    return {"cuda": torch.version.cuda, "devices": devices}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("trainctl", facts["trainctl"]),
        ("python", f"{facts['python']} ({facts['executable']})"),
        *((name, found or "not installed") for name, found in facts["packages"].items()),
        ("platform", facts["platform"]),
        ("host", facts["host"]),
        ("cores", str(facts["cores"])),
        ("memory", f"{facts['memory_gib']} GiB"),
        ("cuda", facts["cuda"] or "torch is built without it"),
    ]
    for device in facts["devices"]:
        size = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
        rows.append((device["device"], f"{device['name']}{size}"))
    if "torch_error" in facts:
        rows.append(("torch", f"does not import: {facts['torch_error']}"))
    return rows
