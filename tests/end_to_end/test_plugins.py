"""A package of a third party: one file and one YAML for each kind, found by entry points alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, Console

PACKAGE = ROOT / "tests" / "plugin" / "toy_plugin"
KINDS = {
    "parallelism": ("summed", "Summed"),
    "optimizer": ("signum", "Signum"),
    "data": ("sums", "Sums"),
    "task": ("accuracy_lm", "AccuracyLM"),
    "observer": ("loss_limit", "LossLimit"),
}
CHOSEN = [f"{group}={kind}" for group, (kind, _) in KINDS.items()]
JOB = [
    "name=job",
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=2",
    "scheduler=constant",
    "accumulation.samples_per_step=12",
    "accumulation.micro_batch_size=3",
    "max_steps=6",
    "log_every_steps=1",
    "launch.device=cpu",
    "logging.tensorboard=false",
]


@pytest.fixture(scope="module")
def trainctl(tmp_path_factory: pytest.TempPathFactory) -> Console:
    """The command, in an empty folder, with the distribution installed for it."""
    console = Console.in_folder(tmp_path_factory.mktemp("job"))
    site = console.folder / "site"
    shutil.copytree(PACKAGE, site / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / "toy_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1\n")
    options = [f"{g}.{kind} = toy_plugin.{kind}:{name}" for g, (kind, name) in KINDS.items()]
    conf = ["[trainctl.conf]", "toy_plugin = toy_plugin.conf", ""]
    (info / "entry_points.txt").write_text("\n".join(["[trainctl.options]", *options, *conf]))
    return console


@pytest.mark.parametrize("group", KINDS)
def test_commands_know_the_kind(trainctl: Console, group: str) -> None:
    kind, _ = KINDS[group]
    out, _ = trainctl("list", group)
    assert re.search(rf"^ +{group}={kind} +\w", out, re.MULTILINE)
    out, _ = trainctl("list", f"{group}.{kind}")
    preset = (PACKAGE / "conf" / group / f"{kind}.yaml").read_text()
    for field in re.findall(r"^(?!kind|defaults)(\w+):", preset, re.MULTILINE):
        assert field in out
    out, _ = trainctl("completion", "query", f"trainctl run {group}={kind[:3]}")
    assert f"{group}={kind}" in out


def test_its_settings_are_checked_and_explained(trainctl: Console) -> None:
    trainctl("check", *CHOSEN, *JOB)
    out, _ = trainctl("config", "explain", "observer.limit", *CHOSEN)
    assert "loss_limit.yaml" in out
    assert "Mean loss of a window." in out
    _, err = trainctl("check", *CHOSEN, "optimizer.momentm=0.5", "observer.steps=0", status=2)
    assert "did you mean 'optimizer.momentum'" in err
    assert "observer.steps: must be greater than 0" in err
    _, err = trainctl("check", *CHOSEN, "launch.processes=6", status=2)
    assert "summed is for at most 4 ranks, but launch has 6" in err


def losses(console: Console, run_dir: Path) -> list[object]:
    return [row["loss"] for row in console.rows(run_dir)]


def test_all_of_it_trains_on_any_number_of_ranks_and_resumes(trainctl: Console) -> None:
    alone = ["parallelism=single", "name=alone"]
    trainctl("run", *CHOSEN, *JOB, *alone)
    expected = losses(trainctl, trainctl.run_dir("alone"))
    assert len(expected) == 6

    out, _ = trainctl("run", *CHOSEN, *JOB, "launch.processes=2", "max_steps=3")
    run_dir = trainctl.run_dir("job")
    assert {path.stem for path in (run_dir / "result").iterdir()} == {"rank-0", "rank-1"}
    out, _ = trainctl("resume", str(run_dir), "launch.processes=1", "max_steps=20")
    # The limit counts the steps before the resume, too.
    assert "stopped after step 6: the loss was below 1000 in 6 steps" in out
    result = json.loads((run_dir / "result.json").read_text())
    assert result["step"] == 6
    assert 0 <= result["scores"]["eval_accuracy"] <= 1
    assert losses(trainctl, run_dir) == pytest.approx(expected, rel=1e-5)
    known = json.loads((trainctl.run_dir("alone") / "result.json").read_text())["scores"]
    assert result["scores"] == pytest.approx(known, rel=1e-5)


def test_it_needs_public_names_only() -> None:
    sources = [path.read_text() for path in PACKAGE.glob("*.py")]
    assert len(sources) == 1 + len(KINDS)
    imports = [line for text in sources for line in re.findall(r"from launcher\S* import.*", text)]
    assert imports
    assert not [line for line in imports if re.search(r"[. ]_\w", line)]
