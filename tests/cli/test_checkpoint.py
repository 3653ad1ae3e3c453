"""`trainctl checkpoint`: lists, verifies, shows, exports and converts what any engine saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launcher.checkpoint import SavedCheckpoint
from launcher.cli import main
from tests.checkpoint.conftest import same_tensor
from tests.conftest import Console


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Console:
    """A run of two ranks with checkpoints of the steps 8 and 12, which is not changed."""
    console = Console.in_folder(tmp_path_factory.mktemp("checkpoint"))
    engine = ("parallelism=fsdp", "launch.processes=2")
    console.toy(*engine, "model.dropout=0.0", "checkpoint.keep=2")
    return console


@pytest.fixture
def run(made: Console, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(made.run_dir(), tmp_path / "run")


def as_json(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0) -> Any:
    capsys.readouterr()
    assert main(["checkpoint", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_the_list_names_damage_the_best_and_the_last(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = as_json(capsys, "list", run)
    assert [first["step"], second["step"]] == [8, 12]
    assert [first["last"], second["last"]] == [False, True]
    assert {each["status"] for each in (first, second)} == {"complete"}
    assert (second["ranks"], second["engine"]) == (2, "fsdp")
    assert second["bytes"] == sum(
        path.stat().st_size for path in Path(second["path"]).rglob("*") if path.is_file()
    )
    # Scores of other steps are worse than those of step 8.
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    better = [*rows, {"step": 8, "eval_loss": 0.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in better))
    file = run / "checkpoints" / "step-00000012" / "state" / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    old = run / "checkpoints" / "step-00000008"
    shutil.copytree(old, old.with_name("step-00000004.corrupt"))
    quarantined, first, second = as_json(capsys, "list", run)
    assert quarantined["status"] == "quarantined"
    assert (first["best"], first["last"]) == (True, True)
    assert second["status"] == "damaged"
    assert "state/__1_0.distcp" in second["faults"][0]
    assert (second["best"], second["last"]) == (False, False)
    assert main(["checkpoint", "list", str(run)]) == 0
    assert "complete, best, last" in capsys.readouterr().out


def test_verify_names_every_damaged_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(each["ok"] for each in as_json(capsys, "verify", run))
    damaged = run / "checkpoints" / "step-00000012"
    flip(damaged / "state" / "__0_0.distcp", 100)
    flip(damaged / "train_state.json", 3)
    (good, bad) = as_json(capsys, "verify", run, status=14)
    assert good["ok"]
    assert good["path"].endswith("step-00000008")
    assert not bad["ok"]
    # What the rest cannot be read without is checked first.
    assert "train_state.json" in bad["error"]
    flip(damaged / "train_state.json", 3)
    assert main(["checkpoint", "verify", str(damaged)]) == 14
    assert "state/__0_0.distcp: expected" in capsys.readouterr().out
    (damaged / "manifest.json").unlink()
    assert main(["checkpoint", "verify", str(damaged)]) == 14
    assert main(["checkpoint", "export", str(damaged), "-o", str(run / "no")]) == 14
    assert not (run / "no").exists()


def test_show_prints_tensors_state_and_what_changed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"max_steps": 99}))
    facts = as_json(capsys, "show", run, "--tensors", r"^model\.0")
    (embedding,) = facts["tensors"]
    assert embedding["shards"] == 2
    assert embedding["shape"][0] == 26
    assert embedding["bytes"] == 26 * embedding["shape"][1] * 4
    assert facts["train_state"]["samples"] == 48
    assert facts["parts"]["model"]["tensors"] == 3
    assert facts["config_differences"] == [{"key": "max_steps", "left": 12, "right": 99}]
    assert main(["checkpoint", "show", str(run / "checkpoints" / "step-00000008")]) == 0
    assert "fsdp on 2 ranks" in capsys.readouterr().out
    assert main(["checkpoint", "show", str(run), "--tensors", "("]) == 2


@pytest.mark.parametrize("parts", [1, 3])
def test_another_number_of_files_has_the_same_tensors(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: int
) -> None:
    target = tmp_path / "new" / "step-00000012"
    assert main(["checkpoint", "convert", str(run), "--parts", str(parts), "-o", str(target)]) == 0
    assert len(list(target.glob("state/*.distcp"))) == parts
    assert main(["checkpoint", "verify", str(target)]) == 0
    old, new = SavedCheckpoint(run / "checkpoints" / "step-00000012"), SavedCheckpoint(target)
    assert old.describe() == new.describe()
    before, after = old.read(old.describe()), new.read(new.describe())
    assert all(same_tensor(tensor, after[name]) for name, tensor in before.items())
    assert main(["checkpoint", "convert", str(run), "--parts", "1", "-o", str(target)]) == 14
    assert "exists already" in capsys.readouterr().err


def test_one_file_of_tensors(run: Path, tmp_path: Path) -> None:
    words = ["checkpoint", "convert", str(run), "--tensors", "^(model|optimizer)", "--to"]
    assert main([*words, "safetensors", "-o", str(tmp_path / "all.st")]) == 0
    assert main([*words, "torch", "-o", str(tmp_path / "all.pt")]) == 0
    saved = SavedCheckpoint(run / "checkpoints" / "step-00000012")
    expected = saved.read(name for name in saved.describe() if name.startswith(("model", "opt")))
    for found in (
        load_file(tmp_path / "all.st"),
        torch.load(tmp_path / "all.pt", weights_only=True),
    ):
        assert found.keys() == expected.keys()
        assert all(same_tensor(tensor, found[name]) for name, tensor in expected.items())
    assert main([*words, "torch", "-o", str(tmp_path / "no.pt"), "--parts", "2"]) == 2
