"""Ranks under several launchers: on several machines, or started by torchrun, srun or mpirun."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import LaunchError
from launcher.launch._outer import first_host, outer_world
from tests.conftest import Console, toy_words
from tests.end_to_end.test_resume import trace, wait_for_step, weights

NODES = ("parallelism=ddp", "launch=manual", "launch.nodes=2", "launch.interface=lo")


def ends(*processes: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each."""
    texts = [process.communicate(timeout=120) for process in processes]
    return [(each.returncode, *text) for each, text in zip(processes, texts, strict=True)]


def as_rank(rank: int, port: int) -> dict[str, str]:
    """Variables of a process that srun or deepspeed starts as one of two on this machine."""
    here = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    return {**here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.fixture
def port() -> int:
    """A free port: tests of this file may run at the same time."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
    return number


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, bytes]:
    """Trace and weights of a run of two ranks under one launcher."""
    trainctl = Console.in_folder(tmp_path_factory.mktemp("one"))
    trainctl.toy("parallelism=ddp", "launch.processes=2")
    return trace(trainctl, trainctl.run_dir()), weights(trainctl.run_dir())


def test_two_nodes_run_the_same_training(
    trainctl: Console, undisturbed: tuple[object, bytes]
) -> None:
    out, _ = trainctl.toy(*NODES)
    run_dir = trainctl.run_dir()
    commands = re.findall(r"trainctl (join \S+ --node-rank \d)", out)
    assert [command.split()[-1] for command in commands] == ["0", "1"]
    assert not (run_dir / "result.json").exists()
    # The second node first: it waits for the first one.
    second, first = (trainctl.start(*command.split()) for command in reversed(commands))
    (status, out, err), (other, other_out, other_err) = ends(first, second)
    assert (status, other) == (0, 0), (err, other_err)
    assert "train longer with" in out
    assert "train longer with" not in other_out
    assert (trace(trainctl, run_dir), weights(run_dir)) == undisturbed
    assert not (run_dir / "result/store.json").exists()


def test_a_rank_killed_on_one_node_is_the_error_of_all(trainctl: Console) -> None:
    trainctl.toy(*NODES, "task.step_s=0.03")
    run_dir = trainctl.run_dir()
    nodes = [trainctl.start("join", str(run_dir), "--node-rank", str(n)) for n in (0, 1)]
    wait_for_step(trainctl, 2)
    # Each launcher has one rank.
    threads = Path(f"/proc/{nodes[1].pid}/task").glob("*/children")
    [pid] = [int(child) for thread in threads for child in thread.read_text().split()]
    os.kill(pid, signal.SIGKILL)
    for status, _, err in ends(*nodes):
        assert status == 137, err
        assert "rank 1 was killed by SIGKILL" in err
    assert json.loads((run_dir / "result.json").read_text())["exit_status"] == 137


def _is_rank(environ: Path, rank: int, run_dir: Path) -> bool:
    try:
        variables = environ.read_bytes().split(b"\0")
        command = environ.with_name("cmdline").read_bytes()
    except OSError:
        return False
    return b"RANK=%d" % rank in variables and os.fsencode(run_dir) in command


def test_processes_of_another_launcher_are_the_ranks_of_one_run(
    trainctl: Console, undisturbed: tuple[object, bytes], port: int
) -> None:
    words = ["run", *toy_words("parallelism=ddp")]
    first, second = (trainctl.start(*words, **as_rank(rank, port)) for rank in (0, 1))
    (status, _, err), (other, _, other_err) = ends(first, second)
    assert (status, other) == (0, 0), (err, other_err)
    [run_dir] = (trainctl.folder / "runs/toy").iterdir()
    assert (trace(trainctl, run_dir), weights(run_dir)) == undisturbed


def test_an_error_of_rank_0_ends_the_others_and_is_printed_once(
    trainctl: Console, port: int
) -> None:
    words = ["run", *toy_words("parallelism=ddp", "optimizer.lrr=1")]
    first, second = (trainctl.start(*words, **as_rank(rank, port)) for rank in (0, 1))
    (status, _, err), (other, _, other_err) = ends(first, second)
    assert (status, other) == (2, 2)
    assert "did you mean 'optimizer.lr'" in err
    assert not other_err


def test_another_version_of_the_config_is_named(trainctl: Console, tmp_path: Path) -> None:
    """As on nodes that do not share the folder of the runs."""
    from tests.launch.identity import compare

    texts = trainctl.call(compare, str(tmp_path))
    assert "has trainctl 2 with config b, but rank 0 has trainctl 1 with config a" in texts[0]


def test_a_node_without_a_first_node_gives_up(trainctl: Console) -> None:
    trainctl.toy(*NODES, "launch.timeout_s=0.5")
    _, err = trainctl("join", str(trainctl.run_dir()), "--node-rank", "1", status=3)
    assert "node 0 was not found within launch.timeout_s=0.5 s" in err
    assert "--node-rank 0" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "add --node-rank N, from 0 to 1"),
        (("--node-rank", "2"), "must be from 0 to 1, but is 2"),
    ],
)
def test_a_node_that_does_not_exist(
    trainctl: Console, words: tuple[str, ...], message: str
) -> None:
    trainctl.toy(*NODES)
    _, err = trainctl("join", str(trainctl.run_dir()), *words, status=3)
    assert message in err


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        # A batch script of Slurm has them too, but is no task of a step.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
        ({**as_rank(1, 29417), "LOCAL_SIZE": "2"}, ("torchrun", 1, 2, 1, 2, "127.0.0.1", 29417)),
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_NODELIST": "node[03-04]",
                "SLURM_JOB_ID": "4711",
                "SLURM_STEP_ID": "2",
            },
            ("srun", 3, 4, 1, None, "node03", 24913),
        ),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "MASTER_PORT": "29500",
            },
            ("mpirun", 1, 2, 1, 2, "127.0.0.1", 29500),
        ),
    ],
)
def test_the_world_of_another_launcher(
    variables: Mapping[str, str], expected: tuple[object, ...] | None
) -> None:
    world = outer_world(variables)
    if expected is None:
        assert world is None
        return
    assert world is not None
    found = (world.program, world.rank, world.size, world.local_rank, world.local_size)
    assert (*found, world.host, world.port) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "set MASTER_ADDR"),
        ({"RANK": "zero", "WORLD_SIZE": "2"}, "RANK must be a number, but is 'zero'"),
    ],
)
def test_incomplete_variables_of_another_launcher(
    variables: Mapping[str, str], message: str
) -> None:
    with pytest.raises(LaunchError, match=message):
        outer_world(variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node[03-07,11],login1", "node03"),
        ("a1,b[2-3]", "a1"),
        ("rack1-n[5]-ib,x", "rack1-n5-ib"),
    ],
)
def test_the_first_host_of_a_list_of_slurm(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


ELASTIC = (
    "parallelism=ddp",
    "launch=torchrun",
    "launch.nodes=2",
    "launch.min_nodes=1",
    "launch.max_restarts=3",
)


def test_a_run_on_fewer_nodes_keeps_its_batch(
    trainctl: Console, undisturbed: tuple[object, bytes]
) -> None:
    out, _ = trainctl.toy(*ELASTIC, "launch.rdzv_endpoint=127.0.0.1:29400")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes=1:2 " in out
    run_dir = trainctl.run_dir()
    # As torchrun starts the only rank that is left.
    alone: Any = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}
    trainctl("join", str(run_dir), **alone)
    keys = ("step", "lr", "samples", "tokens")
    expected: Any = undisturbed[0]
    assert [[row[key] for key in keys] for row in trace(trainctl, run_dir)] == [
        [row[key] for key in keys] for row in expected
    ]


def test_torchrun_does_not_repeat_what_a_restart_cannot_cure(trainctl: Console) -> None:
    trainctl.toy(*ELASTIC, "launch.rdzv_endpoint=127.0.0.1:29400", "task.poison=17")
    run_dir = trainctl.run_dir()
    words = ("join", str(run_dir))
    alone: Any = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}
    trainctl(*words, status=10, **alone)
    before = (run_dir / "result/rank-0.json").read_text()
    _, err = trainctl(*words, status=10, **alone, TORCHELASTIC_RESTART_COUNT="1")
    assert "made-up/17" in err
    assert (run_dir / "result/rank-0.json").read_text() == before
    assert not (run_dir / "restarts.jsonl").exists()


@pytest.mark.slow
def test_torchrun_continues_on_the_nodes_that_are_left(
    trainctl_as_installed: Console, undisturbed: tuple[object, bytes], port: int
) -> None:
    """Two agents on this machine; one is killed with its rank."""
    trainctl = trainctl_as_installed
    words = (f"launch.rdzv_endpoint=127.0.0.1:{port}", "launch.rdzv_conf='last_call_timeout=3'")
    out, _ = trainctl.toy(*ELASTIC, *words, "task.step_s=0.1")
    command = shlex.split(out.splitlines()[-1])[3:]
    variable, program, *flags = command
    assert program == "torchrun"
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *flags],
            cwd=trainctl.folder,
            env=trainctl.environment | dict([variable.split("=")]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    run_dir = wait_for_step(trainctl, 5)
    [rank] = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if _is_rank(path, 1, run_dir) and b"_worker" in path.with_name("cmdline").read_bytes()
    ]
    parents = {agent.pid: agent for agent in agents}
    lost = next(pid for pid in ancestors(rank) if pid in parents)
    os.kill(lost, signal.SIGKILL)
    os.kill(rank, signal.SIGKILL)
    left = next(agent for pid, agent in parents.items() if pid != lost)
    [(status, _, err)] = ends(left)
    assert status == 0, err
    parents[lost].communicate()
    assert "restart 1 of 3 from step" in err
    keys = ("step", "lr", "samples", "tokens")
    expected: Any = undisturbed[0]
    assert [[row[key] for key in keys] for row in trace(trainctl, run_dir)] == [
        [row[key] for key in keys] for row in expected
    ]


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank(
    trainctl_as_installed: Console, undisturbed: tuple[object, bytes]
) -> None:
    trainctl = trainctl_as_installed
    words = toy_words(
        "parallelism=ddp",
        "launch=torchrun",
        "launch.processes=2",
        "launch.max_restarts=1",
        "task.step_s=0.03",
    )
    process = trainctl.start("run", *words)
    run_dir = wait_for_step(trainctl, 5)
    [pid] = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if _is_rank(path, 1, run_dir) and b"_worker" in path.with_name("cmdline").read_bytes()
    ]
    os.kill(pid, signal.SIGKILL)
    [(status, out, err)] = ends(process)
    assert status == 0, err
    assert "train longer with" in out
    assert (trace(trainctl, run_dir), weights(run_dir)) == undisturbed
