"""Functions on several real ranks: processes that share a gloo group on the loopback interface.

Ranks are forked from a process of `tests.fork_server` that has imported the test module. A world of
two ranks is up in a quarter of a second.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import faulthandler
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.fork_server import call

ROOT = Path(__file__).resolve().parent.parent
# A rank whose peer died reports that; the peer's own error is more useful.
_SECONDARY = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")


class RankError(AssertionError):
    """A rank of `run_on_ranks` failed; the message holds its traceback."""


@dataclass(frozen=True)
class Ended:
    """End of one rank.

    Attributes:
        status: Exit status; negative where a signal ended it.
        result: What the function returned; None where it did not return.
        log: What it printed, its traceback included.
    """

    status: int
    result: Any
    log: str


def run_on_ranks(
    function: Callable[..., Any], *args: Any, ranks: int = 2, timeout_s: float = 120
) -> list[Any]:
    """Run a function on every rank of a new world, and return what each rank returned.

    Args:
        function: A function of a test module, by name; `torch.distributed` is initialised when it
            is called.
        args: Its arguments; must be picklable.
        ranks: Number of processes.
        timeout_s: After so long every rank prints its stack and is killed.

    Raises:
        RankError: A rank failed.
    """
    ended = end_of_ranks(function, *args, ranks=ranks, timeout_s=timeout_s)
    failed = [(rank, end) for rank, end in enumerate(ended) if end.status != 0]
    if not failed:
        return [end.result for end in ended]
    primary = [each for each in failed if not any(text in each[1].log for text in _SECONDARY)]
    secondary = [each for each in failed if each not in primary]
    raise RankError(
        "\n".join(
            f"rank {rank} of {ranks} ended with status {end.status}:\n{end.log}"
            for rank, end in primary + secondary
        )
    )


def end_of_ranks(
    function: Callable[..., Any], *args: Any, ranks: int = 2, timeout_s: float = 120
) -> list[Ended]:
    """Run a function on every rank, as `run_on_ranks` does, and return how each rank ended."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as folder:
        world = (function, args, ranks, timeout_s, Path(folder))
        module = function.__module__
        ended, _, _ = call(_world, *world, cwd=ROOT, env=environment, module=module)
    return [Ended(*each) for each in ended]


def _world(
    function: Callable[..., Any], args: tuple[Any, ...], ranks: int, timeout_s: float, folder: Path
) -> list[tuple[int, Any, str]]:
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _rank(function, args, rank, ranks, timeout_s, folder)
        pids.append(pid)
    statuses = _wait(pids, timeout_s + 5)
    return [(status, *_left_by(folder, rank)) for rank, status in enumerate(statuses)]


def _rank(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    ranks: int,
    timeout_s: float,
    folder: Path,
) -> None:
    """Be a rank; never returns."""
    status = 1
    log = (folder / f"{rank}.log").open("w")
    try:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        faulthandler.enable(log)
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=log)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks),
        )
        import torch.distributed as dist

        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=dt.timedelta(seconds=timeout_s),
        )
        result = function(*args)
        with (folder / f"{rank}.pickle").open("wb") as file:
            pickle.dump(result, file)
        # A rank that leaves early closes connections that others may still read from.
        dist.barrier()
        dist.destroy_process_group()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - a rank must never return into the server
        traceback.print_exc(file=log)
    finally:
        for stream in (sys.stdout, sys.stderr, log):
            _flush(stream)
        os._exit(status)


def _flush(stream: IO[str]) -> None:
    with contextlib.suppress(ValueError):
        stream.flush()


def _wait(pids: list[int], timeout_s: float) -> list[int]:
    """Wait for processes, killing what is left after a time; their exit statuses."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(found) < len(pids):
        for pid in pids:
            if pid not in found:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    found[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return [found[pid] for pid in pids]


def _left_by(folder: Path, rank: int) -> tuple[Any, str]:
    result, log = folder / f"{rank}.pickle", folder / f"{rank}.log"
    value = pickle.loads(result.read_bytes()) if result.exists() else None
    return value, log.read_text(errors="replace") if log.exists() else ""
