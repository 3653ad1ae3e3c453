"""Rank and world size of this process from the environment, and the process group."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from launcher.contracts import Layout, World
from launcher.errors import LaunchError
from launcher.launch._environment import STORE_FD

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


def read_world(device: str, layout: Callable[[int], Layout]) -> World:
    """Return this process's rank, device and mesh, from torchrun's environment variables."""
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", str(local_rank + 1)))
    name = choose_device(device, ranks_here, _devices())
    index = f":{local_rank}" if name == "cuda" else ""
    return World(rank, size, local_rank, f"{name}{index}", layout(size))


def choose_device(device: str, ranks_here: int, devices: Mapping[str, int | None]) -> str:
    """Return the kind of device that all ranks of this machine use.

    Args:
        device: `auto`, or a kind of device.
        ranks_here: Number of ranks on this machine.
        devices: Number of devices of each kind, the preferred kind first; None for any number.

    Raises:
        LaunchError: There is none, or not one for each rank.
    """
    # By kind and not by rank: otherwise, with fewer GPUs than ranks, some would train on the CPU.
    here = [kind for kind, count in devices.items() if count != 0]
    name = here[0] if device == "auto" else device
    if name not in here:
        raise LaunchError(
            f"launch.device={device}: torch sees no such device; available here: {', '.join(here)}"
        )
    count = devices[name]
    if count is not None and ranks_here > count:
        raise LaunchError(
            f"launch.device={device}: {ranks_here} ranks on this machine need as many {name} "
            f"devices, but torch sees {count}; start fewer ranks, or write launch.device=cpu"
        )
    return name


def _devices() -> dict[str, int | None]:
    import torch

    return {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": None,
    }


def share_of_cores(environment: Mapping[str, str]) -> int | None:
    """Return the threads of one of several ranks on this machine; None: leave them to torch."""
    # torch gives every rank all cores, and ranks that compete for cores wait for each other.
    ranks_here = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if ranks_here == 1 or "OMP_NUM_THREADS" in environment:
        return None
    # Not os.cpu_count(), which includes cores that Slurm or taskset gave to other jobs.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // ranks_here)


# Added to the timeout of collectives: the launcher must notice a missing rank first, since only it
# can report where each rank is.
_LATER_S = 10.0


@contextmanager
def process_group(world: World, timeout_s: float) -> Iterator[None]:
    """Join the process group of the run's ranks; a single rank has none."""
    if world.size == 1:
        yield
        return
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_s + _LATER_S)
    backend = "cpu:gloo,cuda:nccl" if world.device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=_store(world, timeout),
            rank=world.rank,
            world_size=world.size,
            timeout=timeout,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise LaunchError(
            f"rank {world.rank} of {world.size} cannot join the others: {error}"
        ) from error
    yield
    # Not in a `finally`: after an error other ranks may be in a collective, and this would wait.
    dist.destroy_process_group()


def _store(world: World, timeout: timedelta) -> Store | None:
    """Return the rendezvous store on the socket that the launcher has bound; None without one."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # it names itself no export

    descriptor = os.environ.pop(STORE_FD, None)
    if descriptor is None:
        return None
    store: Store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world.size,
        is_master=bool(descriptor),
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=int(descriptor) if descriptor else None,
    )
    return store
