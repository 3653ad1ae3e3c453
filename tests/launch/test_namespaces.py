"""Two nodes in two network namespaces that a veth pair joins; needs root and iproute2."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Console
from tests.end_to_end.test_resume import wait_for_step

pytestmark = pytest.mark.slow

TIMEOUT_S = 20.0
WORDS = (
    "parallelism=ddp",
    "launch=torchrun",
    "launch.nodes=2",
    "launch.rdzv_endpoint=10.77.0.1:29477",
    f"launch.timeout_s={TIMEOUT_S}",
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Network:
    """Two namespaces with the addresses 10.77.0.1 and 10.77.0.2."""

    names: tuple[str, str]

    def cut(self) -> None:
        ip("-n", self.names[0], "link", "set", "eth", "down")

    def start(self, node: int, trainctl: Console, command: str) -> subprocess.Popen[str]:
        variable, program, *flags = shlex.split(command)
        assert program == "torchrun"
        # The host name belongs to no address in a namespace: the first node says that it is it.
        here = f"--rdzv-conf=is_host={int(node == 0)}"
        address = f"--local-addr=10.77.0.{node + 1}"
        words = [sys.executable, "-m", "torch.distributed.run", here, address, *flags]
        environment = trainctl.environment | dict([variable.split("=")])
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[node], *words],
            cwd=trainctl.folder,
            env=environment | {"GLOO_SOCKET_IFNAME": "eth"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    mark = secrets.token_hex(3)
    names = (f"trainctl-{mark}-0", f"trainctl-{mark}-1")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(
            *("link", "add", "eth", "netns", names[0], "type", "veth"),
            *("peer", "name", "eth", "netns", names[1]),
        )
        for node, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{node + 1}/24", "dev", "eth")
            ip("-n", name, "link", "set", "eth", "up")
        yield Network(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def prepared(trainctl: Console, *words: str) -> tuple[Path, str]:
    """Prepare a run; return its directory and the command of each node."""
    out, _ = trainctl.toy(*WORDS, *words)
    return trainctl.run_dir(), out.splitlines()[-1].partition(" && ")[2]


def test_two_nodes_train_one_run(trainctl_as_installed: Console, network: Network) -> None:
    trainctl = trainctl_as_installed
    run_dir, command = prepared(trainctl)
    nodes = [network.start(node, trainctl, command) for node in (0, 1)]
    for node in nodes:
        _, err = node.communicate(timeout=240)
        assert node.returncode == 0, err
    assert trainctl.rows(run_dir)[-1]["step"] == 12


def test_a_cut_link_ends_the_run_with_an_error(
    trainctl_as_installed: Console, network: Network
) -> None:
    trainctl = trainctl_as_installed
    run_dir, command = prepared(trainctl, "max_steps=100000", "task.step_s=0.02")
    nodes = [network.start(node, trainctl, command) for node in (0, 1)]
    wait_for_step(trainctl, 5, seconds=240)
    network.cut()
    began = time.monotonic()
    while not (run_dir / "result.json").exists():
        assert time.monotonic() < began + TIMEOUT_S + 20, "it hangs"
        time.sleep(0.05)
    result = json.loads((run_dir / "result.json").read_text())
    assert result["exit_status"] == 12, result
    assert "no progress within launch.timeout_s=20 s" in result["message"]
    # torchrun's agent without the rendezvous ends by its own timeouts, of minutes.
    for node in nodes:
        node.kill()
        node.communicate()
