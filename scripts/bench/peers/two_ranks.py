"""Two ranks of a hand-written loop: the program starts itself a second time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch.distributed as dist

RANKS = 2


def join(module: str) -> tuple[int, subprocess.Popen[bytes] | None]:
    """Join the process group; rank 0 starts rank 1.

    Args:
        module: The program, as `python -m` takes it.

    Returns:
        This rank, and on rank 0 the process of the other one.
    """
    rank = int(os.environ.get("RANK", "0"))
    # DeepSpeed insists on it.
    os.environ.setdefault("LOCAL_RANK", str(rank))
    other = None
    if rank == 0:
        store = Path(tempfile.mkdtemp()) / "store"
        environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "BENCH_STORE": str(store)}
        other = subprocess.Popen([sys.executable, "-m", module, *sys.argv[1:]], env=environment)
    else:
        store = Path(os.environ["BENCH_STORE"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    return rank, other
