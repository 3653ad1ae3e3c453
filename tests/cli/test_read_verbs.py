"""Output of the read-only verbs, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from launcher import __version__
from launcher.cli import main
from launcher.cli._yaml import to_yaml
from launcher.config.schema import RunConfig
from launcher.contracts import GROUPS

Trainctl = Callable[..., str]


@pytest.fixture
def trainctl(capsys: pytest.CaptureFixture[str]) -> Trainctl:
    """Run a command line in this process; give what it printed."""

    def run(*words: str, status: int = 0) -> str:
        assert main([*words]) == status, capsys.readouterr().err
        output = capsys.readouterr()
        return output.err if status and not output.out else output.out

    return run


def test_version(trainctl: Trainctl) -> None:
    assert trainctl("version") == trainctl("--version") == f"trainctl {__version__}\n"
    assert json.loads(trainctl("version", "--json")) == {"trainctl": __version__}


def test_env(trainctl: Trainctl) -> None:
    facts = json.loads(trainctl("env", "--json"))
    assert {"torch", "transformers", "deepspeed", "accelerate", "hydra-core"} <= set(
        facts["packages"]
    )
    assert facts["cores"] > 0
    assert facts["memory_gib"] > 0
    assert "cuda" in facts
    shown = trainctl("env")
    assert f"torch         {facts['packages']['torch']}" in shown


def test_shown_config_is_the_config(trainctl: Trainctl, tmp_path: Path) -> None:
    words = ["config", "show", "optimizer=sgd", "name='1e-3'", "max_grad_norm=null"]
    text = trainctl(*words)
    values = json.loads(trainctl(*words, "--json"))
    assert yaml.safe_load(text) == values
    assert list(yaml.safe_load(text)) == list(RunConfig.model_fields)
    (tmp_path / "whole.yaml").write_text(text)
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "whole.yaml")) == values
    again = ["config", "show", "--json", "--config-dir", str(tmp_path), "-cn", "whole"]
    assert json.loads(trainctl(*again)) == values


@pytest.mark.parametrize(
    "text",
    [
        *("1e-3", ".5", "nan", "-.inf", "1_000", "no", "null", "~", "", "a: b", "# x", "0x1f"),
        *("1:30", "2020-01-01", "- a", "😀", "a\nb", "\x85", "\x07", "\u2028", "5%", "@x"),
        *(" a ", "it's", '"', "\\"),
    ],
)
def test_yaml_keeps_text_as_text(text: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"a": text, "b": [text, [1, 2.5e-8, None, True]], "c": {"d": [{}]}}
    written = to_yaml(values)
    assert yaml.safe_load(written) == values
    (tmp_path / "written.yaml").write_text(written, encoding="utf-8")
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "written.yaml")) == values


def test_explain_names_every_writer(trainctl: Trainctl) -> None:
    words = ["config", "explain", "optimizer.lr", "optimizer=sgd", "optimizer.lr=0.5"]
    shown = trainctl(*words).splitlines()
    assert shown[0] == "optimizer.lr = 0.5"
    assert "  type        float in (0, 1000]" in shown
    assert "  set by      command line: optimizer.lr=0.5" in shown
    assert any("instead of  conf/optimizer/sgd.yaml:" in line for line in shown)
    assert any(line.startswith("  on resume ") for line in shown)
    facts = json.loads(trainctl(*words, "--json"))
    assert (facts["value"], facts["type"]) == (0.5, "float in (0, 1000]")
    assert facts["writers"][-1]["where"] == "command line"
    assert trainctl("config", "explain", "optimizer=sgd", "optimizer.lr").startswith(
        "optimizer.lr ="
    )


def test_explain_of_a_group_shows_its_values(trainctl: Trainctl) -> None:
    shown = trainctl("config", "explain", "scheduler")
    assert shown.startswith("scheduler:\n  kind: cosine\n")
    assert "on resume" in shown


def test_explain_of_a_typo_suggests(trainctl: Trainctl) -> None:
    assert "did you mean 'optimizer.lr'?" in trainctl("config", "explain", "optimizer.l", status=2)


def test_diff_takes_runs_files_and_overrides(trainctl: Trainctl, tmp_path: Path) -> None:
    run = tmp_path / "a"
    run.mkdir()
    (run / "config.json").write_text(trainctl("config", "show", "--json", "seed=3"))
    assert trainctl("config", "diff", str(run), str(run / "config.json")) == "equal\n"
    assert trainctl("config", "diff", str(run), "seed=3 name=default") == "equal\n"
    shown = trainctl("config", "diff", str(run), "optimizer=sgd", status=1).splitlines()
    assert shown[0].split() == ["key", "A", "B"]
    assert ["seed", "3", "0"] in [line.split() for line in shown]
    assert ["optimizer.momentum", "-", "0.9"] in [line.split() for line in shown]
    found = json.loads(trainctl("config", "diff", str(run), "optimizer=sgd", "--json", status=1))
    assert {"key": "optimizer.momentum", "right": 0.9} in found


def test_schema_describes_every_group(trainctl: Trainctl) -> None:
    schema = json.loads(trainctl("config", "schema"))
    assert set(GROUPS) <= set(schema["properties"])
    assert schema["properties"]["seed"]["minimum"] == 0


def test_check_says_the_batch_equation(trainctl: Trainctl) -> None:
    words = ["check", "accumulation.micro_batch_size=4", "accumulation.samples_per_step=16"]
    shown = trainctl(*words, "max_steps=1234", "max_epochs=1")
    assert shown.startswith(
        "ok: 16 samples (2,048 tokens) per step = micro-batch 4 × accumulation 4"
    )
    assert "1,234 steps or 1 epoch, whichever comes first" in shown
    facts = json.loads(trainctl(*words, "--json"))
    assert (facts["ok"], facts["problems"], facts["samples_per_step"]) == (True, [], 16)


def test_check_reports_every_problem(trainctl: Trainctl) -> None:
    words = ["check", "optimizer.lrr=1", "max_steps=-1"]
    shown = trainctl(*words, status=2)
    assert "trainctl: error: 2 problems in the config" in shown
    found = json.loads(trainctl(*words, "--json", status=2))
    assert not found["ok"]
    assert {problem["key"] for problem in found["problems"]} == {"optimizer.lrr", "max_steps"}
    assert all("command line" in problem["origin"] for problem in found["problems"])


def test_check_looks_at_the_world(trainctl: Trainctl) -> None:
    words = ["check", "data=text", "data.files=no/such/*.txt", "model=hf", "model.path=/no/such"]
    words.append("optimizer.lr=2e-5")  # pretrained weights need one
    status = main(words)
    assert status in {2, 13}
    shown = trainctl(*words, status=status)
    assert "no/such/*.txt" in shown
    assert "/no/such:" in shown
    found = json.loads(trainctl(*words, "--json", status=status))
    assert len(found["problems"]) == 2


def test_check_of_a_sweep_checks_every_job(trainctl: Trainctl) -> None:
    words = ["check", "-m", "optimizer=adamw,sgd", "accumulation.samples_per_step=16"]
    assert trainctl(*words, "seed=1,2").startswith("ok: 4 jobs; 16 samples")
    assert "optimizer.lr" in trainctl(*words, "optimizer.lr=1,-1", status=2)


def test_list_goes_from_groups_to_fields(trainctl: Trainctl) -> None:
    groups = trainctl("list").splitlines()
    assert [line.split()[0] for line in groups] == list(GROUPS)
    options = trainctl("list", "optimizer")
    assert "  optimizer=adamw " in options
    for word in ("optimizer.adamw", "optimizer=adamw"):
        fields = trainctl("list", word)
        assert fields.startswith("optimizer.adamw: Adam with decoupled weight decay.")
        assert "\n\nSource: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2" in fields
        [lr] = [line for line in fields.splitlines() if line.startswith("  lr ")]
        assert lr.split()[1:5] == ["float", "in", "(0,", "1000]"]
        assert "Peak learning rate" in lr
    preset = json.loads(trainctl("list", "scheduler=cosine_with_min_lr", "--json"))
    assert (preset["kind"], preset["preset"]) == ("cosine", "cosine_with_min_lr")
    [ratio] = [field for field in preset["fields"] if field["key"] == "min_lr_ratio"]
    assert (ratio["value"], ratio["type"]) == (0.1, "float in [0, 1] | null")
    assert "did you mean 'optimizer'?" in trainctl("list", "optimzer", status=2)
    assert "did you mean 'adamw'?" in trainctl("list", "optimizer.admw", status=2)


@pytest.mark.parametrize("group", GROUPS)
def test_list_knows_every_kind_and_value(group: str, trainctl: Trainctl) -> None:
    options = json.loads(trainctl("list", group, "--json"))
    assert all(each["doc"] for each in [*options["presets"], *options["kinds"]])
    assert all(each["kind"] for each in options["presets"])
    for kind in sorted({each["kind"] for each in options["presets"]})[:3]:
        found = json.loads(trainctl("list", f"{group}.{kind}", "--json"))
        assert all(field["doc"] and field["type"] for field in found["fields"])
        assert all("value" in field for field in found["fields"])


def test_recipes(trainctl: Trainctl, tmp_path: Path) -> None:
    text = "# @package _global_\n# One step. Not more.\nmax_steps: 1\n"
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "short.yaml").write_text(text)
    flag = f"--config-dir={tmp_path}"
    assert ["short", "One", "step"] in [
        line.split() for line in trainctl("recipes", flag).splitlines()
    ]
    assert {"recipe": "short", "doc": "One step"} in json.loads(trainctl("recipes", "--json", flag))
    assert trainctl("recipes", "show", "short", flag).endswith(text)
    assert "did you mean 'short'?" in trainctl("recipes", "show", "shrt", flag, status=2)
    assert json.loads(trainctl("config", "show", "recipe=short", flag, "--json"))["max_steps"] == 1
    assert trainctl("config", "diff", "short", "max_steps=1", flag) == "equal\n"


def test_check_warns_of_what_may_not_be_meant(
    trainctl: Trainctl, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "optimizer=adafactor", "max_grad_norm=1.0"]
    (warning,) = json.loads(trainctl(*words, "--json"))["warnings"]
    assert warning.startswith("max_grad_norm: changes what adafactor computes")
    assert json.loads(trainctl("check", "optimizer=adafactor", "--json"))["warnings"] == []
