"""Ranks that follow a scenario, without a model, for tests of `start`.

`python standin.py RUN_DIR SCENARIO` is such a rank;
`python standin.py launch RUN_DIR SCENARIO N` is a launcher of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from launcher.errors import DataError, NonFinite, Preempted, TrainctlError
from launcher.launch import StartOptions
from launcher.launch._heartbeat import Heartbeat
from launcher.launch._lock import locked
from launcher.launch._outcome import Result
from launcher.launch._signals import StopFlag
from launcher.launch._worker import main
from launcher.launch.local import Local
from launcher.run_dir import RunDir
from tests import fork_server

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]


class StandIn(Local):
    """Starts this file instead of the worker."""

    scenario: str

    @override
    def command(self, run_dir: RunDir) -> Sequence[str]:
        return [
            sys.executable,
            "-P",
            "-m",
            "tests.launch.standin",
            str(run_dir.path),
            self.scenario,
        ]

    @override
    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT)}


@cache
def default_config() -> RunConfig:
    """Return the config of `trainctl run`."""
    # Ranks need no Hydra.
    from launcher.config.load import load_config

    return load_config([]).config


def launch(
    path: Path, scenario: str, ranks: int = 2, timeout_s: float = 60.0, restarts: int = 0
) -> Result:
    """Run ranks of a scenario under a launcher that is this process."""
    from launcher.launch._start import start

    values: dict[str, Any] = {
        "kind": "local",
        "processes": ranks,
        "max_restarts": restarts,
        "device": "cpu",
        "threads": None,
        "timeout_s": timeout_s,
        "scenario": scenario,
    }
    config = default_config().model_copy(update={"launch": StandIn.model_construct(**values)})
    run_dir = RunDir(path)
    with locked(run_dir) as lock:
        return start(config, run_dir, lock, StartOptions(restarts=restarts))


def launch_forked(path: Path, scenario: str) -> None:
    """Run two ranks that need torch, which they do not import but have from their start."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    error, _, _ = fork_server.call(_error_of, path, scenario, cwd=ROOT, env=environment)
    if error is not None:
        kind, message, attributes = error
        raise kind.from_record(message, attributes)


def _error_of(path: Path, scenario: str) -> tuple[type[TrainctlError], str, dict[str, Any]] | None:
    try:
        launch(path, scenario)
    except TrainctlError as error:
        return type(error), str(error), error.attributes()
    return None


@contextmanager
def group(rank: Rank, size: int = 2) -> Iterator[None]:
    """Join the process group of the ranks; it waits far longer than the launcher."""
    from launcher.contracts import Layout, World
    from launcher.launch._world import process_group

    with process_group(World(rank.number, size, rank.number, "cpu", Layout(dp_replicate=size)), 60):
        yield


class Rank:
    """One rank's view: its number, its heartbeat, and the others, through files."""

    def __init__(self, run_dir: RunDir, stop: StopFlag) -> None:
        self.number = int(os.environ.get("RANK", "0"))
        self.path, self.stop = run_dir.path, stop
        self.beat = Heartbeat(self.number)
        self.say(f"pid-{self.number}", str(os.getpid()))

    def say(self, name: str, text: str = "") -> None:
        """Write a file that others wait for."""
        (self.path / f".{name}").write_text(text)
        (self.path / f".{name}").rename(self.path / name)

    def await_(self, name: str) -> None:
        """Wait for another rank's file."""
        while not (self.path / name).exists():
            time.sleep(0.01)

    def finish_step(self, step: int) -> None:
        """Report a step, and leave a file whose time is that of its end."""
        self.beat("step", step)
        self.say(f"step-{self.number}")

    def train(self, steps: int = 10**9) -> None:
        """Make progress until a signal."""
        for step in range(steps):
            if (number := self.stop()) is not None:
                raise Preempted(f"{number.name} received: stopped after step {step}")
            self.beat("step", step)
            time.sleep(0.01)


def complete(rank: Rank) -> None:
    rank.train(3)


def train(rank: Rank) -> None:
    rank.train()


def data_error(rank: Rank) -> None:
    if rank.number == 1:
        raise DataError("corpus.jsonl:7: must be a string, but is 3")
    rank.train()


def lost_peer_first(rank: Rank) -> None:
    """Rank 0 writes down its loss of rank 1 before rank 1 writes down why."""
    if rank.number == 0:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
    rank.await_("result/rank-0.json")
    raise NonFinite("the loss is nan", [3, 17])


def timed_out_last(rank: Rank) -> None:
    """Rank 1 ends a collective after its timeout; rank 0 writes down first that it lost rank 1."""
    if rank.number == 0:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
    rank.await_("result/rank-0.json")
    raise RuntimeError("[gloo] Timed out waiting 1000ms for recv operation to complete")


def lost_in_save_first(rank: Rank) -> None:
    """Rank 0 misses rank 1 in a save before the launcher has seen the end of rank 1."""
    import torch.distributed as dist

    from launcher.checkpoint._ranks import Ranks
    from launcher.contracts import Layout, World
    from launcher.launch._world import process_group

    world = World(rank.number, 2, rank.number, "cpu", Layout(dp_replicate=2))
    with process_group(world, 20):
        others = Ranks(rank.number, 2, 1.0)
        if rank.number == 0:
            others.first(lambda: None)
        # From here on rank 1 takes no part, and says why only when rank 0 has given up.
        dist.destroy_process_group()
        rank.await_("result/rank-0.json")
        raise DataError("corpus.jsonl:7: must be a string, but is 3")


def killed(rank: Rank) -> None:
    if rank.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    rank.train()


def killed_while_it_saves(rank: Rank) -> None:
    """The run was asked to end, and Slurm has no patience."""
    if rank.number == 0:
        rank.await_("pid-1")
        os.kill(os.getppid(), signal.SIGTERM)
    while rank.stop() is None:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def bug(rank: Rank) -> None:
    if rank.number == 1:
        raise KeyError("weight")
    rank.train()


def stopped(rank: Rank) -> None:
    rank.finish_step(4)
    if rank.number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    rank.await_("never")


def sleeps(rank: Rank) -> None:
    """The last rank sleeps in a step; the others wait for it in a collective."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    with group(rank, size):
        rank.finish_step(4)
        if rank.number == size - 1:
            rank.await_("never")
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(3))


def builds(rank: Rank) -> None:
    """Rank 0 computes for longer than the timeout before the first step; rank 1 waits for it."""
    if rank.number == 0:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            sum(range(10_000))
        rank.say("built")
    rank.await_("built")


def signals_launcher(rank: Rank, *, number: int) -> None:
    if rank.number == 0:
        os.kill(os.getppid(), number)
    rank.train()


def ctrl_c_twice(rank: Rank) -> None:
    """Nobody heeds the first; rank 1 is stopped."""
    if rank.number == 0:
        rank.await_("pid-1")
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getppid(), signal.SIGINT)
        rank.await_("never")
    os.kill(os.getpid(), signal.SIGSTOP)


def aborts(rank: Rank) -> None:
    """The ranks reduce tensors of different sizes: gloo aborts."""
    import torch
    import torch.distributed as dist

    with group(rank):
        dist.all_reduce(torch.ones(3 + 1000 * rank.number))
    rank.train()


def reduces(rank: Rank) -> None:
    import torch
    import torch.distributed as dist

    with group(rank):
        one = torch.ones(3)
        dist.all_reduce(one)
        assert one.tolist() == [2.0] * 3


SCENARIOS: Mapping[str, Callable[[Rank], None]] = {
    each.__name__: each
    for each in (
        complete,
        train,
        data_error,
        lost_peer_first,
        timed_out_last,
        lost_in_save_first,
        killed,
        killed_while_it_saves,
        bug,
        stopped,
        sleeps,
        builds,
        ctrl_c_twice,
        aborts,
        reduces,
    )
}


def run(run_dir: RunDir, stop: StopFlag) -> Any:
    """Follow the scenario."""
    scenario = sys.argv[2]
    rank = Rank(run_dir, stop)
    if scenario.startswith("SIG"):
        signals_launcher(rank, number=signal.Signals[scenario])
    else:
        SCENARIOS[scenario](rank)
    scores = {"eval_loss": float("nan")}
    return SimpleNamespace(
        state=SimpleNamespace(step=3, stopped=None),
        scores=scores,
        references={},
        sample=None,
        best={},
        unread=[],
    )


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        launch(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(main(sys.argv[1], run))
