"""A setting that has no effect is refused where it is typed, and named after a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli import check
from launcher.config.effects import not_applicable, without_effect
from launcher.config.load import load_config
from launcher.config.resume_rules import apply
from launcher.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "key", "reason"),
    [
        (
            ["scheduler=constant", "scheduler.warmup_power=2.0"],
            "scheduler.warmup_power",
            "warmup_steps is 0",
        ),
        (
            ["scheduler=cyclic", "scheduler.gamma=1.0"],
            "scheduler.gamma",
            "mode is triangular",
        ),
        (
            ["scheduler=warmup_stable_decay", "scheduler.num_cycles=1.5"],
            "scheduler.num_cycles",
            "decay_type is 1-sqrt",
        ),
        (
            ["scheduler=chained", "scheduler.parts.1.warmup_power=2.0"],
            "scheduler.parts.1.warmup_power",
            "warmup_steps is 0",
        ),
        (
            ["task.sample_tokens=0", "task.sample_temperature=1.0"],
            "task.sample_temperature",
            "sample_tokens is 0",
        ),
        (
            [
                "data=text",
                "data.files=a",
                "data.validation_files=b",
                "data.validation_fraction=0.1",
            ],
            "data.validation_fraction",
            "validation_files is the held-out set",
        ),
        (
            ["parallelism=ddp", "parallelism.bucket_mb=50"],
            "parallelism.bucket_mb",
            "one rank exchanges no gradients",
        ),
    ],
)
def test_a_word_without_effect_is_refused(words: list[str], key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    [problem] = caught.value.problems
    assert problem.key == key
    assert problem.message == f"has no effect: {reason}; leave it out"
    assert problem.origin == f"command line: {words[-1]}"


def test_a_word_that_switches_off_is_not_refused() -> None:
    words = ["accumulation=auto", "accumulation.tokens_per_step=null"]
    assert "accumulation.tokens_per_step" in not_applicable(load_config(words).config)


def test_a_file_may_set_what_a_word_switches_off(tmp_path: Path) -> None:
    experiment = "defaults: [config, _self_]\ntask:\n  sample_temperature: 0.3\n"
    (tmp_path / "mine.yaml").write_text(experiment)
    loaded = load_config(["task.sample_tokens=0"], "mine", [tmp_path])
    assert "task.sample_temperature" in not_applicable(loaded.config)
    found = without_effect(loaded.config, ["optimizer.eps"], loaded.provenance)
    assert list(found) == ["task.sample_temperature"]
    assert found["task.sample_temperature"].endswith(
        "mine.yaml:3: sample_temperature: 0.3: sample_tokens is 0"
    )


def test_a_word_of_a_resume_is_refused_too() -> None:
    stored = load_config(["scheduler=constant"]).config.to_json()
    with pytest.raises(ConfigError, match=r"warmup_power.*has no effect: warmup_steps is 0"):
        apply(stored, ["scheduler.warmup_power=2.0"], ["scheduler"])


def test_after_a_run_what_the_user_set_is_named() -> None:
    one = load_config(["optimizer.eps=1e-6", "scheduler=constant"])
    unread = ["name", "optimizer.eps", "optimizer.betas", "scheduler.warmup_power"]
    found = without_effect(one.config, unread, one.provenance)
    assert found == {"optimizer.eps": "command line: optimizer.eps=1e-6"}


def test_check_warns_of_a_key_of_a_file_without_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe").mkdir()
    text = "# @package _global_\noptimizer:\n  weight_decay: 0.0\n  groups:\n    decay: [norm]\n"
    (tmp_path / "recipe/mine.yaml").write_text(text)
    assert check.main([f"--config-dir={tmp_path}", "recipe=mine"]) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("trainctl: warning: optimizer.groups.decay has no effect (")
    assert warning.endswith("mine.yaml:5: decay: [norm]: weight_decay is 0)")
