import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from launcher.launch.local import Local
from launcher.run_dir import RunDir

RUN_DIR = RunDir(Path("/runs/default/20260101-000000-abcdef"))


def local(processes: object = 1, device: object = "auto", threads: object = None) -> Local:
    return Local.model_validate(
        {"kind": "local", "processes": processes, "device": device, "threads": threads}
    )


def test_one_process_runs_the_worker_itself() -> None:
    assert local().ranks == 1
    assert local().command(RUN_DIR) == [
        sys.executable,
        "-P",
        "-m",
        "launcher.launch._worker",
        str(RUN_DIR.path),
    ]


def test_more_processes_are_started_by_torchrun() -> None:
    command = local(processes=3).command(RUN_DIR)
    assert local(processes=3).ranks == 3
    assert command[:4] == [sys.executable, "-P", "-m", "torch.distributed.run"]
    assert "--nproc-per-node=3" in command
    assert command[-3:] == ["-m", "launcher.launch._worker", str(RUN_DIR.path)]


def test_threads_reach_the_ranks_only_when_set() -> None:
    assert "OMP_NUM_THREADS" not in local().environment()
    assert local(threads=4).environment()["OMP_NUM_THREADS"] == "4"


def test_ranks_neither_download_nor_pool() -> None:
    environment = local().environment()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize(
    ("field", "value"),
    [("processes", 0), ("processes", 1.5), ("device", "gpu"), ("threads", 0), ("threads", "2")],
)
def test_what_is_no_world_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        local(**{field: value})
