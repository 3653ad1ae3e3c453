"""`trainctl config params` lists what the optimizer will do to each parameter."""

from __future__ import annotations

import json
import math
import resource
from typing import Any

import pytest

from launcher.cli import params
from launcher.errors import ConfigError


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    assert params.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["params"]
    return {row["name"]: row for row in rows}


def test_every_parameter_has_group_reason_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, "optimizer.lr=1e-2", "optimizer.weight_decay=0.2")
    norm = rows["model.norm.weight"]
    assert (norm["group"], norm["why"], norm["shape"]) == ("no_decay", "norm", [96])
    assert norm["options"]["weight_decay"] == 0
    head = rows["lm_head.weight"]
    assert (head["group"], head["why"]) == ("decay", "decays by default")
    assert head["options"] == {
        "lr": 1e-2,
        "lr_scale": 1.0,
        "weight_decay": 0.2,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
    }


def test_the_built_optimizers_own_split_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, "optimizer=muon", "optimizer.groups.frozen=[lm_head]")
    assert rows["model.layers.0.mlp.up_proj.weight"]["group"] == "muon, decay"
    assert rows["model.embed_tokens.weight"]["group"] == "adamw, decay"
    assert rows["lm_head.weight"]["group"] == "frozen"
    assert rows["lm_head.weight"]["why"] == "frozen pattern lm_head"
    assert rows["lm_head.weight"]["options"] == {}


def test_a_shared_parameter_is_one_row_with_both_names(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, "model.tie_embeddings=true")
    assert rows["model.embed_tokens.weight"]["shared_as"] == ["lm_head.weight"]
    assert "lm_head.weight" not in rows


def test_the_text_sums_up_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert params.main(["optimizer.lr=0.003"]) == 0
    out = capsys.readouterr().out
    assert "model.layers.1.mlp.down_proj.weight" in out
    assert "96 × 256" in out
    assert "no_decay  5           480       lr 0.003, lr_scale 1, weight_decay 0" in out


def test_a_large_model_is_listed_without_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = listed(capsys, "model=llama_8b")
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(math.prod(row["shape"]) for row in rows.values()) == 8_030_261_248
    assert grown_kib < 2**20


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'embd' matches no parameter; nearest: model\.embed"):
        params.main(["optimizer.groups.decay=[embd]"])
