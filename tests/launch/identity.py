"""Two ranks of different versions, for tests of their comparison."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path


def compare(folder: str) -> None:
    """Print the error of rank 1."""
    from torch.distributed import FileStore  # type: ignore[attr-defined] # no __all__

    from launcher.contracts import Layout, World
    from launcher.errors import LaunchError
    from launcher.launch._world import compare_identity

    def rank(number: int, identity: str) -> None:
        store = FileStore(str(Path(folder) / "store"), 2)
        store.set_timeout(timedelta(seconds=60))
        world = World(number, 2, number, "cpu", Layout(dp_replicate=2))
        try:
            compare_identity(world, store, identity)
        except LaunchError as error:
            print(error)

    first = threading.Thread(target=rank, args=(0, "trainctl 1 with config a"))
    first.start()
    rank(1, "trainctl 2 with config b")
    first.join()
