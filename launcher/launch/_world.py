"""This process's place among the ranks, read from the environment once."""

from __future__ import annotations

import os
from collections.abc import Callable

from launcher.contracts import Layout, World
from launcher.errors import LaunchError


def read_world(device: str, layout: Callable[[int], Layout]) -> World:
    """Return the world as the launcher of the ranks describes it.

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`.
        layout: Gives the mesh of a number of ranks.

    Raises:
        LaunchError: The device is not there.
    """
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return World(rank, size, local_rank, _device(device, local_rank), layout(size))


def _device(wanted: str, local_rank: int) -> str:
    import torch

    available = {
        "cuda": torch.cuda.device_count() > local_rank,
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = next(d for d in available if available[d]) if wanted == "auto" else wanted
    if not available[name]:
        here = [d for d in available if available[d]]
        raise LaunchError(
            f"launch.device={wanted}: torch sees no such device for local rank {local_rank}; "
            f"available here: {', '.join(here)}"
        )
    return f"cuda:{local_rank}" if name == "cuda" else name
