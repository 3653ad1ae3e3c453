"""A learning rate that was tuned on the default job must not reach another model silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.api import load_config, run
from launcher.config import load
from launcher.config.rules import broken, doubtful
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError

PRETRAINED = ["model=hf", "model.path=/nowhere"]
RATES = "optimizer.lr: must be set for pretrained weights"


def lr_doubts(*words: str) -> list[str]:
    found = map(str, doubtful(load.load_config(words).config))
    return [each for each in found if each.startswith("optimizer.")]


def test_pretrained_weights_need_a_learning_rate_of_the_users() -> None:
    with pytest.raises(ConfigError) as caught:
        load.load_config(PRETRAINED)
    message = str(caught.value)
    assert RATES in message
    assert "5e-6 to 5e-5 for full fine-tuning and 1e-4 to 5e-4 for adapters" in message
    assert "conf/optimizer/adamw.yaml" in message


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=4.0e-3"],
        ["optimizer={lr: 1e-5}"],
        ["model.init=random"],
        ["optimizer=prodigy", "scheduler=constant"],
        ["recipe=text_finetune", "data.files=x"],
    ],
    ids=str,
)
def test_a_rate_that_the_user_set_is_his(words: list[str]) -> None:
    load.load_config([*PRETRAINED, *words])


def test_every_rate_of_an_optimizer_counts() -> None:
    with pytest.raises(ConfigError) as caught:
        load.load_config([*PRETRAINED, "optimizer=muon", "optimizer.lr=1e-3"])
    [problem] = caught.value.problems
    assert problem.key == "optimizer.adamw_lr"


def test_a_file_of_the_users_own_sets_it(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    own = tmp_path / "optimizer" / "mine.yaml"
    own.write_text("defaults: [adamw, _self_]\nlr: 1.0e-5\n", encoding="utf-8")
    load.load_config([*PRETRAINED, "optimizer=mine"], config_dirs=[tmp_path])
    own.write_text("defaults: [adamw, _self_]\nweight_decay: 0.0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=RATES):
        load.load_config([*PRETRAINED, "optimizer=mine"], config_dirs=[tmp_path])


def test_python_gets_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=RATES):
        load_config(PRETRAINED)
    pretrained = load_config([*PRETRAINED, "optimizer.lr=1e-5"]).model
    changed = load_config().model_copy(update={"model": pretrained})
    with pytest.raises(ConfigError, match=RATES):
        run(changed)
    assert not caplog.messages
    optimizer = changed.optimizer.model_copy(update={"lr": 1e-5})
    assert not broken(changed.model_copy(update={"optimizer": optimizer}))
    load_config(["model=llama_8b"])
    assert "8.03 billion" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=llama_8b"], "295 thousand parameters, but model=llama has about 8.03 billion"),
        (["model.hidden_size=8", "model.intermediate_size=8"], "llama has about 7.08 thousand"),
    ],
)
def test_another_size_is_a_warning_with_both(words: list[str], message: str) -> None:
    [doubt] = lr_doubts(*words)
    assert message in doubt
    assert not lr_doubts(*words, "optimizer.lr=1e-3")


def test_nothing_is_said_of_the_default_job() -> None:
    assert not lr_doubts()
    assert not lr_doubts("model.num_layers=8")


def test_new_weights_of_a_folders_architecture_are_sized_from_its_config(tmp_path: Path) -> None:
    values = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_positions": 1024}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    [doubt] = lr_doubts("model=hf", f"model.path={tmp_path}", "model.init=random")
    assert "model=hf has about 124 million" in doubt


def test_who_set_a_value_makes_no_other_config() -> None:
    ours = load.load_config([]).config
    typed = load.load_config([f"optimizer.lr={ours.optimizer.lr}"]).config
    assert ours.is_from_preset("optimizer.lr")
    assert not typed.is_from_preset("optimizer.lr")
    assert ours == typed == RunConfig.from_json(ours.to_json())


@pytest.mark.parametrize("preset", ["llama", "llama_60m", "llama_1b"])
def test_the_size_is_that_of_the_built_model(preset: str) -> None:
    from launcher.contracts import Head

    model = load.load_config([f"model={preset}"]).config.model
    module = model.build(Head("causal_lm"), "meta")
    assert model.approximate_size == sum(p.numel() for p in module.parameters())
    if preset == "llama":
        assert load.load_config([]).config.optimizer.preset_model_size == model.approximate_size
