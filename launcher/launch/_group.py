"""The process group of the ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from launcher.errors import LaunchError
from launcher.launch._environment import STORE_FD

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from launcher.contracts import World

# The launcher notices first that a rank is missing, and says where each rank is.
_LATER_S = 10.0


@contextmanager
def process_group(world: World, timeout_s: float) -> Iterator[None]:
    """Join the ranks of a run; one rank needs no group.

    Args:
        world: This process's place among the ranks.
        timeout_s: Longest wait for another rank.

    Raises:
        LaunchError: The ranks cannot reach each other.
    """
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
    # After an error the process ends at once instead: others may be in the middle of a collective.
    dist.destroy_process_group()


def _store(world: World, timeout: timedelta) -> Store | None:
    """The store through which the ranks find each other; None to ask torch for it, by MASTER_ADDR.

    The launcher has bound the port and rank 0 inherits it, so that no other program can take it in
    between.
    """
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
