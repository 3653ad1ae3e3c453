"""Rank and world size of this process from the environment, and the process group."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from launcher.contracts import Layout, World
from launcher.errors import LaunchError
from launcher.launch._environment import STORE_FD, agent_has_store, attempt

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
_IDENTITY = "identity"


@contextmanager
def process_group(world: World, timeout_s: float, identity: str = "") -> Iterator[None]:
    """Join the process group of the run's ranks; a single rank has none."""
    if world.size == 1:
        yield
        return
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_s + _LATER_S)
    backend = "cpu:gloo,cuda:nccl" if world.device.startswith("cuda") else "gloo"
    try:
        store = _store(world, timeout)
        compare_identity(world, store, identity)
        dist.init_process_group(
            backend,
            store=store,
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


def _store(world: World, timeout: timedelta) -> Store:
    """Return the rendezvous store: the launcher's, torchrun's, or one that rank 0 opens."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # no __all__

    environment = os.environ
    descriptor = environment.pop(STORE_FD, None)
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        raise LaunchError(
            f"rank {world.rank} of {world.size} has no MASTER_ADDR and MASTER_PORT: start the run "
            "with trainctl, torchrun or deepspeed"
        )
    agent_has_it = agent_has_store(environment)
    opens_it = world.rank == 0 and not agent_has_it if descriptor is None else bool(descriptor)
    store: Store = TCPStore(
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        world.size,
        is_master=opens_it,
        timeout=timeout,
        wait_for_workers=False,
        # The launcher has bound the port and rank 0 inherits it: no other program can take it.
        master_listen_fd=int(descriptor) if descriptor else None,
    )
    # The store of torchrun's agent still has the keys of attempts before a restart.
    return PrefixStore(f"ranks/{attempt(environment) or 0}", store)


def compare_identity(world: World, store: Store, identity: str) -> None:
    """Compare versions and config with those of rank 0, before the first collective."""
    host = socket.gethostname()
    if world.rank == 0:
        store.set(_IDENTITY, f"{identity} on {host}")
        return
    first = store.get(_IDENTITY).decode()
    if first.rpartition(" on ")[0] != identity:
        raise LaunchError(
            f"rank {world.rank} on {host} has {identity}, but rank 0 has {first}; install the same "
            "version and share the run directory on all nodes"
        )
