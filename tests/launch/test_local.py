import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from launcher.config.load import load_config
from launcher.errors import ConfigError, LaunchError
from launcher.launch._begin import preflight
from launcher.launch.local import Local
from launcher.run_dir import RunDir

RUN_DIR = RunDir(Path("/runs/default/20260101-000000-abcdef"))


def local(
    processes: object = 1,
    device: object = "auto",
    threads: object = None,
    timeout_s: object = 600.0,
) -> Local:
    return Local.model_validate(
        {
            "kind": "local",
            "processes": processes,
            "max_restarts": 0,
            "device": device,
            "threads": threads,
            "timeout_s": timeout_s,
        }
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


def test_each_rank_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert local().rank_environments() == ({},)
    ranks = local(processes=3).rank_environments()
    assert [each["RANK"] for each in ranks] == ["0", "1", "2"]
    assert [each["LOCAL_RANK"] for each in ranks] == ["0", "1", "2"]
    assert {each["WORLD_SIZE"] for each in ranks} == {"3"}
    assert {each["LOCAL_WORLD_SIZE"] for each in ranks} == {"3"}
    assert {each["GLOO_SOCKET_IFNAME"] for each in ranks} <= {"lo", "lo0"}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "GLOO_SOCKET_IFNAME" not in local(processes=3).rank_environments()[0]


def test_threads_reach_the_ranks_only_when_set() -> None:
    assert "OMP_NUM_THREADS" not in local().environment()
    assert local(threads=4).environment()["OMP_NUM_THREADS"] == "4"


def test_ranks_neither_download_nor_pool() -> None:
    environment = local().environment()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its devices as files")
@pytest.mark.parametrize(
    ("drivers", "device", "possible"),
    [
        (("null",), "auto", ("cpu", "cuda", "mps")),
        (("no_such_driver*",), "auto", ("cpu",)),
        (("no_such_driver*",), "cuda", ("cuda",)),
    ],
)
def test_without_an_accelerator_auto_is_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    drivers: tuple[str, ...],
    device: str,
    possible: tuple[str, ...],
) -> None:
    monkeypatch.setattr("launcher.launch.local._DRIVERS", drivers)
    assert tuple(local(device=device).possible_devices()) == possible


@pytest.mark.parametrize("drivers", [("null",), ("no_such_driver*",)])
def test_what_no_possible_device_can_do_is_refused_before_a_run(
    monkeypatch: pytest.MonkeyPatch, drivers: tuple[str, ...]
) -> None:
    monkeypatch.setattr("launcher.launch.local._DRIVERS", drivers)
    config = load_config(["precision=tf32"]).config
    if drivers == ("null",):
        preflight(config)
        return
    with pytest.raises(ConfigError, match=r"tf32 needs cuda.* \(launch.device=auto, which is cpu"):
        preflight(config)


@pytest.mark.skipif(sys.platform != "linux", reason="device files are Linux's")
def test_a_device_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.launch.local._DRIVERS", ("no_such_driver*",))
    for device in ("cuda", "mps"):
        with pytest.raises(LaunchError, match=f"but is {device}, .* write launch.device=auto"):
            local(device=device).preflight()
    local(device="cpu").preflight()
    monkeypatch.setattr("launcher.launch.local._DRIVERS", ("null",))
    local(device="cuda").preflight()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("processes", 0),
        ("processes", 1.5),
        ("device", "gpu"),
        ("threads", 0),
        ("threads", "2"),
        ("timeout_s", 0.0),
        ("timeout_s", 1e6),
    ],
)
def test_what_is_no_world_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        local(**{field: value})
