"""The certificate: what `trainctl run` says about a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.api import load_config
from launcher.config.schema import RunConfig
from launcher.verify import certificate
from launcher.verify.result import versions

DDP = ("parallelism=ddp", "launch.processes=2")


def config(tmp_path: Path, *words: str) -> RunConfig:
    return load_config([f"run_root={tmp_path}", *words])


def certify(verified: RunConfig, status: str = "equal", **changes: Any) -> None:
    values = {
        "shrunk": False,
        "steps": 8,
        "time": "2026-01-02T03:04:05Z",
        "config": verified.model_dump(mode="json"),
        "versions": versions(),
        "samples_per_step": 8,
        "engines": {"ddp": verified.parallelism.model_dump(mode="json")},
        "cells": [{"engine": "ddp", "ranks": 2, "status": status}],
    }
    path = certificate.folder_of(verified) / certificate.CERTIFICATE
    certificate.save(path, json.dumps(values | changes))


def test_without_a_certificate(tmp_path: Path) -> None:
    assert certificate.status(config(tmp_path)) is None
    status = certificate.status(config(tmp_path, *DDP))
    assert status == "not certified: `trainctl verify` compares this engine with one process"


def test_a_certified_config(tmp_path: Path) -> None:
    verified = config(tmp_path, *DDP)
    certify(verified)
    expected = "certified: ddp on 2 ranks trains as one process does (8 steps, 2026-01-02)"
    assert certificate.status(verified) == expected
    # Logging and the cut of the batch change no step.
    other = config(tmp_path, *DDP, "log_every_steps=1", "accumulation.micro_batch_size=1")
    assert certificate.status(other) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizer.lr=0.5"], "changed since: optimizer.lr 0.004 → 0.5"),
        (["accumulation.samples_per_step=16"], "changed since: samples per step 8 → 16"),
        (["launch.processes=4"], "ddp on 4 ranks was not compared"),
        (["parallelism.gradient_compression=bf16"], "ddp on 2 ranks was not compared"),
    ],
)
def test_what_changed(tmp_path: Path, words: list[str], says: str) -> None:
    certify(config(tmp_path, *DDP))
    status = certificate.status(config(tmp_path, *DDP, *words))
    assert status is not None
    assert status.startswith("not certified: ")
    assert says in status


def test_another_version_of_torch(tmp_path: Path) -> None:
    verified = config(tmp_path, *DDP)
    certify(verified, versions={**versions(), "torch": "1.0"})
    status = certificate.status(verified)
    assert status is not None
    assert status.startswith("not certified: changed since: torch 1.0 → ")


def test_an_engine_that_differs_or_a_damaged_file(tmp_path: Path) -> None:
    verified = config(tmp_path, *DDP)
    certify(verified, "different")
    status = certificate.status(verified)
    assert status is not None
    assert "ddp on 2 ranks does not train as one process does" in status
    (certificate.folder_of(verified) / certificate.CERTIFICATE).write_text("{")
    status = certificate.status(verified)
    assert status is not None
    assert status.endswith("SAMENESS.json is damaged")
