from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.explain import ABSENT, Difference, diff, explain, side
from launcher.config.load import LoadedConfig, load_config
from launcher.errors import ConfigError


def test_a_setting_is_explained_by_its_writers_and_its_field() -> None:
    explanation = explain(load_config(["recipe=quick", "max_steps=7"]), "max_steps")
    assert explanation.value == 7
    assert [origin.where.partition(":")[0] for origin in explanation.writers] == [
        "conf/config.yaml",
        "recipes/quick.yaml",
        "command line",
    ]
    assert explanation.field is not None
    assert explanation.field.description is not None
    assert "whole run" in explanation.field.description
    assert explanation.resume.startswith("may change: ")


def test_a_group_and_what_follows_from_it() -> None:
    words = ["accumulation={micro_batch_size: 16, samples_per_step: 16}", "task.seq_len=128"]
    explanation = explain(load_config(words), "accumulation")
    assert explanation.value == {"kind": "samples", "micro_batch_size": 16, "samples_per_step": 16}
    assert "16 samples (2,048 tokens) per step" in explanation.derived
    assert explanation.resume == (
        "may change with --allow accumulation: "
        "the batch, and with it the meaning of a step, changes"
    )


def test_nested_settings_have_their_own_field(packaged: LoadedConfig) -> None:
    explanation = explain(packaged, "optimizer.groups.decay")
    assert explanation.value == []
    assert explanation.field is not None
    assert "Patterns" in str(explanation.field.description)


def test_a_key_that_is_not_there(packaged: LoadedConfig) -> None:
    with pytest.raises(ConfigError, match=r"no such setting; optimizer has: kind, lr, "):
        explain(packaged, "optimizer.nothing")
    with pytest.raises(ConfigError, match=r"of scheduler=cosine; scheduler=.* have it"):
        explain(packaged, "scheduler.gamma")
    with pytest.raises(ConfigError, match=r"optimizer\.l: no such setting; did you mean"):
        explain(packaged, "optimizer.l")
    with pytest.raises(ConfigError):
        explain(packaged, "seed.x")
    with pytest.raises(ConfigError):
        explain(packaged, "")


def test_diff_lists_the_leaves_that_differ() -> None:
    old = {"a": 1, "b": {"c": [1], "d": None}, "e": 0}
    new = {"a": 1, "b": {"c": [2], "f": None}, "e": False}
    assert diff(old, new) == [
        Difference("b.c", [1], [2]),
        Difference("b.d", None, ABSENT),
        Difference("b.f", ABSENT, None),
    ]


def test_sides_are_overrides_recipes_and_runs(tmp_path: Path, stored: str) -> None:
    run = tmp_path / "run 1"
    run.mkdir()
    (run / "config.json").write_text(stored)
    default = side("")
    assert side(str(run)) == default
    assert side(str(run / "config.json")) == default
    assert side("quick").max_steps == 50
    assert side("recipe=quick seed=4").seed == 4
    assert side("run_root='a b' seed=4 ++max_grad_value=2").max_grad_value == 2
    for wrong in ("quik", str(tmp_path), "a 'b", str(tmp_path / "no.json"), "optimizer.l=1"):
        with pytest.raises(ConfigError):
            side(wrong)
