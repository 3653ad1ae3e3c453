from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launcher.config.load import LoadedConfig
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError


def changed(stored: str, **values: Any) -> RunConfig:
    """The packaged config with other values; `optimizer__lr` is `optimizer.lr`."""
    mapping = json.loads(stored)
    for key, value in values.items():
        target = mapping
        *parents, last = key.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    return RunConfig.from_json(json.dumps(mapping))


def test_json_is_canonical_and_comes_back(packaged: LoadedConfig, stored: str) -> None:
    again = RunConfig.from_json(stored)
    assert again == packaged.config
    assert again.to_json() == stored
    assert stored == json.dumps(json.loads(stored), sort_keys=True, indent=1) + "\n"
    assert again.fingerprint() == packaged.config.fingerprint()
    assert len(again.fingerprint()) == 16


def test_the_fingerprint_sees_every_change(stored: str) -> None:
    seen = {changed(stored, seed=seed).fingerprint() for seed in range(5)}
    lr = json.loads(stored)["optimizer"]["lr"]
    seen.add(changed(stored, optimizer__lr=math.nextafter(lr, 1)).fingerprint())
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer__lr", "3e-4", r'optimizer\.lr: must be a valid number, but is "3e-4"'),
        ("optimizer__lr", float("nan"), r"optimizer\.lr: must be a finite number"),
        ("max_steps", True, r"max_steps: must be a valid integer, but is true"),
        ("max_steps", 1e3, r"max_steps: .* but is 1000\.0; write 1000"),
        ("max_steps", 0, r"max_steps: must be greater than 0, but is 0"),
        ("max_epochs", 0.0, r"max_epochs: must be greater than 0"),
        ("seed", -1, r"seed: must be greater than or equal to 0"),
        ("seed", 2**63, r"seed: must be less than"),
        ("log_every_steps", None, r"log_every_steps: must be a valid integer, but is null"),
        ("max_grad_norm", 0, r"max_grad_norm: must be greater than 0"),
        ("on_nonfinite", "ignore", r"on_nonfinite: must be 'stop' or 'skip', but is \"ignore\""),
        ("name", "../evil", r"name: "),
        ("name", ".hidden", r"name: "),
        ("name", "a/b", r"name: "),
        ("name", "", r"name: "),
        ("name", "x" * 129, r"name: "),
        ("run_root", "", r"run_root: "),
        ("run_root", "a\0b", r"run_root: "),
        ("optimizer", None, r"optimizer: must be a mapping"),
        ("optimizer", {"kind": "adamv"}, r"optimizer\.kind: no such kind .* did you mean 'adamw'"),
        ("optimizer", {"kind": 3}, r"optimizer\.kind: must name the kind of optimizer"),
        ("optimizer", {}, r"optimizer\.kind: must name the kind of optimizer"),
        ("optimizer__betas", [0.9], r"optimizer\.betas\.1: has no value"),
        ("optimizer__betas", [0.9, "x"], r"optimizer\.betas\.1: must be a valid number"),
        ("optimizer__groups__decay", ["("], r"optimizer\.groups\.decay\.0: is no regular expr"),
        ("nmae", 1, r"nmae: no such setting; did you mean 'name'"),
        ("name", "\udcff", r"holds text that cannot be stored"),
    ],
)
def test_wrong_values(stored: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        changed(stored, **{key: value})
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_grad_norm", 1),
        ("max_grad_norm", None),
        ("max_steps", None),
        ("max_epochs", 0.5),
        ("eval_every_steps", None),
        ("eval_max_samples", None),
        ("seed", 2**63 - 1),
        ("name", "größe-1.5_b+c=d,e@f"),
    ],
)
def test_right_values(stored: str, key: str, value: Any) -> None:
    assert json.loads(changed(stored, **{key: value}).to_json())[key] == value


def test_several_errors_come_together(stored: str) -> None:
    mapping = json.loads(stored)
    mapping["seed"] = "x"
    mapping["optimizer"]["lr"] = -1
    mapping["optimizer"]["bets"] = mapping["optimizer"].pop("betas")
    del mapping["launch"]
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping(mapping)
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["launch", "optimizer.bets", "optimizer.lr", "seed"]
    assert "choose one with launch=OPTION" in str(caught.value)


def test_a_setting_of_another_kind_says_whose_it_is(stored: str) -> None:
    with pytest.raises(ConfigError, match=r"of optimizer=sgd; .*optimizer=adamw.* have it"):
        changed(stored, optimizer={"kind": "sgd", "amsgrad": False})


def test_text_that_is_no_json() -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        RunConfig.from_json("{")
    with pytest.raises(ConfigError):
        RunConfig.from_json("[]")


def test_options_are_frozen(packaged: LoadedConfig) -> None:
    with pytest.raises(ValueError, match="frozen"):
        packaged.config.seed = 1  # type: ignore[misc] # the point of the test


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b"[1]", b"null"])
def test_a_file_that_is_no_config_is_a_problem(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError):
        RunConfig.read(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.read(tmp_path)
