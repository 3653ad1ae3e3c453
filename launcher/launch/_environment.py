"""Environment variables between the launcher and its ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping

HEARTBEAT_FD = "TRAINCTL_HEARTBEAT_FD"
STORE_FD = "TRAINCTL_STORE_FD"
EARLY_FD = "TRAINCTL_EARLY_FD"
LAUNCHER_PID = "TRAINCTL_LAUNCHER_PID"
# Number of restarts by torchrun.
ATTEMPT = "TORCHELASTIC_RESTART_COUNT"
_MAX_RESTARTS = "TORCHELASTIC_MAX_RESTARTS"
_RUN_ID = "TORCHELASTIC_RUN_ID"
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"

# Variables that set the rank of a process.
RANK_VARIABLES = frozenset(
    [
        # Variables that torch.distributed and torchrun's workers read.
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_NAME",
        "ROLE_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_ERROR_FILE",
        _MAX_RESTARTS,
        ATTEMPT,
        _RUN_ID,
        _AGENT_STORE,
        # Variables from which DeepSpeed and Accelerate find the ranks of an MPI job.
        "CROSS_RANK",
        "CROSS_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        "PMI_RANK",
        "PMI_SIZE",
        "MPI_LOCALRANKID",
        "MPI_LOCALNRANKS",
    ]
)


def attempt(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of restarts so far; None where nothing restarts the ranks."""
    count = environment.get(ATTEMPT)
    return None if count is None else int(count)


def most_attempts(environment: Mapping[str, str] = os.environ) -> int:
    """Return the restarts that torchrun is allowed to make."""
    return int(environment.get(_MAX_RESTARTS, "0"))


def in_program(environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if the program that starts the ranks has started this process."""
    # torchrun with one process makes no world of ranks. Its agents on several machines may have
    # been started by the user, and not by a launcher.
    return LAUNCHER_PID in environment or _RUN_ID in environment


def agent_has_store(environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if torchrun's agent has the store that MASTER_ADDR and MASTER_PORT name."""
    return environment.get(_AGENT_STORE) == "True"


def store_variables(host: str, port: int, descriptor: int | None = None) -> dict[str, str]:
    """Return the variables with which a rank finds the store.

    Args:
        host: Host of the store.
        port: Its port.
        descriptor: The bound socket that the rank listens on; None where it connects to a store.
    """
    inherited = "" if descriptor is None else str(descriptor)
    return {"MASTER_ADDR": host, "MASTER_PORT": str(port), STORE_FD: inherited}


def without_rank() -> dict[str, str]:
    # The launcher may have been started by torchrun, srun or mpirun: its ranks would take the
    # rank of the launcher for theirs.
    ours = {HEARTBEAT_FD, STORE_FD, EARLY_FD, LAUNCHER_PID}
    return {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES and k not in ours}


def common_to_ranks() -> dict[str, str]:
    return {
        # Rust's tokenizer pool warns, or deadlocks, in a process that forks after using it.
        "TOKENIZERS_PARALLELISM": "false",
        # A run must never start a download.
        "HF_HUB_OFFLINE": "1",
        # Threads that spin at a barrier starve each other as soon as another process needs a core:
        # a small model on two busy cores ran ten times slower than on one. What the user set wins.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
