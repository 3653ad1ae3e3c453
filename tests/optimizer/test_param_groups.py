"""The group of each parameter, and the errors of wrong patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.errors import ConfigError
from launcher.optimizer import assign, param_groups

Build = Callable[..., OptimizerOption]


class T5LayerNorm(nn.Module):
    """Named like transformers' own, and no relative of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = T5LayerNorm()
        self.mlp = nn.Linear(4, 4)


class Network(nn.Module):
    """Embedding, two blocks, a norm, and a head that shares the embedding's table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.final = nn.LayerNorm(4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight


def decaying(module: nn.Module, option: OptimizerOption) -> set[str]:
    return {
        a.name
        for a in assign(OptimizerTarget(module, "cpu"), option)
        if a.options["weight_decay"] > 0
    }


def test_norms_and_biases_do_not_decay_by_type(build_option: Build) -> None:
    assert decaying(Network(), build_option("adamw")) == {
        "embed.weight",
        *(
            f"blocks.{i}.{name}"
            for i in (0, 1)
            for name in ("attention.in_proj_weight", "attention.out_proj.weight", "mlp.weight")
        ),
    }


def test_a_model_of_transformers_decays_what_its_trainer_decays(build_option: Build) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.trainer_pt_utils import get_parameter_names

    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=16,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        module: nn.Module = AutoModelForCausalLM.from_config(config)
    patterns = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    expected = set(get_parameter_names(module, [nn.LayerNorm], patterns))
    assert decaying(module, build_option("adamw")) == expected


@pytest.mark.parametrize(
    ("types", "spared"),
    [
        ([], set()),
        (["bias"], {"blocks.0.mlp.bias", "blocks.0.attention.in_proj_bias", "final.bias"}),
        (["norm"], {"blocks.0.norm.weight", "final.weight", "final.bias"}),
        (["embedding"], {"embed.weight"}),
        (["vector"], {"blocks.0.norm.weight", "blocks.0.mlp.bias", "final.weight", "final.bias"}),
    ],
)
def test_types_that_do_not_decay(build_option: Build, types: list[str], spared: set[str]) -> None:
    option = build_option("adamw", groups={"no_decay_types": types})
    everything = {name for name, _ in Network().named_parameters()}
    assert (everything - decaying(Network(), option)) >= spared
    if not types:
        assert decaying(Network(), option) == everything


def test_decay_patterns_win_over_no_decay_patterns_and_both_over_types(
    build_option: Build,
) -> None:
    groups = {"decay": ["final", "0.*mlp"], "no_decay": ["mlp"]}
    names = decaying(Network(), build_option("adamw", groups=groups))
    assert {"final.weight", "final.bias", "blocks.0.mlp.weight", "blocks.0.mlp.bias"} <= names
    assert "blocks.1.mlp.weight" not in names


def test_a_shared_parameter_is_taken_once_and_answers_to_all_its_names(
    build_option: Build,
) -> None:
    module = Network()
    groups = param_groups(
        OptimizerTarget(module, "cpu"), build_option("adamw", groups={"no_decay": [r"^head\."]})
    )
    taken = [param for group in groups for param in group["params"]]
    assert sum(param is module.embed.weight for param in taken) == 1
    spared = next(group for group in groups if group["name"] == "no_decay")
    assert any(param is module.embed.weight for param in spared["params"])


def test_order_is_the_modules_and_the_same_every_time(build_option: Build) -> None:
    module, option = Network(), build_option("adamw")
    first = [
        [id(p) for p in group["params"]]
        for group in param_groups(OptimizerTarget(module, "cpu"), option)
    ]
    assert first == [
        [id(p) for p in group["params"]]
        for group in param_groups(OptimizerTarget(module, "cpu"), option)
    ]
    names = [a.name for a in assign(OptimizerTarget(module, "cpu"), option)]
    assert names == [name for name, _ in module.named_parameters()]


def test_frozen_parameters_lose_their_gradient_and_are_left_out(build_option: Build) -> None:
    module = Network()
    module.final.bias.requires_grad_(False)
    option = build_option("adamw", groups={"frozen": ["embed", "blocks.0"]})
    names = {a.name for a in assign(OptimizerTarget(module, "cpu"), option)}
    assert not names & {"embed.weight", "final.bias", "blocks.0.mlp.weight"}
    assert "blocks.1.mlp.weight" in names
    assert not module.embed.weight.requires_grad


def test_freezing_everything_is_an_error(build_option: Build) -> None:
    with pytest.raises(ConfigError, match="no parameter to train"):
        assign(OptimizerTarget(Network(), "cpu"), build_option("adamw", groups={"frozen": [""]}))


def test_overrides_change_any_option_and_the_last_wins(build_option: Build) -> None:
    overrides = [
        {"pattern": "blocks", "lr": 1e-4, "betas": [0.8, 0.9]},
        {"pattern": "blocks.1", "lr_scale": 0.5, "weight_decay": 0.3},
    ]
    option = build_option("adamw", lr=1e-2, groups={"overrides": overrides})
    found = {a.name: a.options for a in assign(OptimizerTarget(Network(), "cpu"), option)}
    assert found["embed.weight"]["lr_scale"] == 1
    assert "betas" not in found["embed.weight"]
    first = found["blocks.0.mlp.weight"]
    assert (first["lr_scale"], first["betas"]) == (pytest.approx(1e-2), (0.8, 0.9))
    second = found["blocks.1.norm.weight"]
    assert second["lr_scale"] == pytest.approx(0.5)
    assert second["lr"] == pytest.approx(5e-3)
    assert second["weight_decay"] == 0.3


def test_overrides_reach_the_built_optimizer(build_option: Build) -> None:
    overrides = [{"pattern": "embed", "lr": 1e-4, "eps": 1e-3}]
    option = build_option("adamw", lr=1e-2, groups={"overrides": overrides})
    optimizer = option.build(OptimizerTarget(Network(), "cpu"))
    assert sorted(group["eps"] for group in optimizer.param_groups) == [1e-8, 1e-8, 1e-3]
    assert all(group["lr"] == 1e-2 * group["lr_scale"] for group in optimizer.param_groups)


def test_layer_decay_counts_blocks_from_the_output(build_option: Build) -> None:
    option = build_option("adamw", groups={"layer_decay": 0.5})
    scales = {
        a.name: a.options["lr_scale"] for a in assign(OptimizerTarget(Network(), "cpu"), option)
    }
    assert scales["embed.weight"] == 0.125
    assert scales["blocks.0.mlp.weight"] == 0.25
    assert scales["blocks.1.norm.weight"] == 0.5
    assert scales["final.weight"] == 1


def test_layer_decay_counts_a_decoders_blocks_after_its_encoders(build_option: Build) -> None:
    module = nn.ModuleDict(
        {
            "encoder": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]),
            "decoder": nn.ModuleList([nn.Linear(2, 2)]),
        }
    )
    option = build_option("adamw", groups={"layer_decay": 0.5})
    scales = {a.name: a.options["lr_scale"] for a in assign(OptimizerTarget(module, "cpu"), option)}
    assert [scales[f"{name}.weight"] for name in ("encoder.0", "encoder.1", "decoder.0")] == [
        0.125,
        0.25,
        0.5,
    ]


def test_layer_decay_needs_blocks(build_option: Build) -> None:
    with pytest.raises(ConfigError, match="no numbered blocks"):
        assign(
            OptimizerTarget(nn.Linear(2, 2), "cpu"),
            build_option("adamw", groups={"layer_decay": 0.5}),
        )


def test_names_are_the_same_under_wrappers(build_option: Build) -> None:
    module = nn.ModuleDict({"_orig_mod": Network()})
    option = build_option("adamw", groups={"no_decay": ["^embed"]})
    assert assign(OptimizerTarget(module, "cpu"), option)[0].name == "embed.weight"


@pytest.mark.parametrize("key", ["decay", "no_decay", "frozen", "overrides"])
def test_a_pattern_that_matches_nothing_names_the_nearest(build_option: Build, key: str) -> None:
    pattern: Any = {"pattern": "finel", "lr": 1.0} if key == "overrides" else "finel"
    with pytest.raises(ConfigError) as caught:
        assign(OptimizerTarget(Network(), "cpu"), build_option("adamw", groups={key: [pattern]}))
    (problem,) = caught.value.problems
    assert problem.key.startswith(f"optimizer.groups.{key}")
    assert "'finel' matches no parameter; nearest: final.weight" in problem.message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"beta": 0.9}, "beta: cannot be set by group; settings that can: betas"),
        ({"implementation": "loop"}, "cannot be set by group"),
        ({"betas": [0.9, 1.5]}, "betas.1: Input should be less than 1"),
        ({"lr": -1}, "lr: Input should be greater than 0"),
        ({"lr": "fast"}, "lr: Input should be a valid number"),
        ({"lr": None}, "lr: must be a number"),
        ({"lr": 1e-3, "lr_scale": 2.0}, "not combined with lr"),
        ({"lr_scale": True}, "lr_scale: must be a number"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_overrides_are_validated_like_the_option_itself(
    build_option: Build, override: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build_option("adamw", groups={"overrides": [{"pattern": "embed", **override}]})


def test_a_pattern_must_be_a_regular_expression(build_option: Build) -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        build_option("adamw", groups={"decay": ["["]})


def test_freeze_is_offered_before_wrapping(build_option: Build) -> None:
    module = Network()
    build_option("adamw", groups={"frozen": [r"^head\."]}).groups.freeze(module)
    assert not module.embed.weight.requires_grad
    assert module.final.weight.requires_grad


@pytest.mark.parametrize(
    ("groups", "key"),
    [
        ({"overrides": [{"pattern": "embed", "lr": 1e-4}]}, "overrides.0.pattern"),
        ({"decay": ["embed"]}, "decay"),
        ({"no_decay": ["embed"]}, "no_decay"),
    ],
)
def test_what_is_set_for_frozen_parameters_alone_is_refused(
    build_option: Build, groups: dict[str, Any], key: str
) -> None:
    option = build_option("adamw", groups={"frozen": ["embed"], **groups})
    with pytest.raises(ConfigError) as caught:
        param_groups(OptimizerTarget(Network(), "cpu"), option)
    [problem] = caught.value.problems
    assert problem.key == f"optimizer.groups.{key}"
    assert "has no effect: all parameters that 'embed' matches are frozen" in problem.message


@pytest.mark.parametrize(
    ("pattern", "setting", "who"),
    [
        ("embed", {"momentum": 0.5}, "AdamW steps"),
        ("embed", {"nesterov": False}, "AdamW steps"),
        ("mlp.weight", {"betas": [0.8, 0.9]}, "Muon steps"),
    ],
)
def test_an_override_that_the_other_half_of_muon_would_read_is_refused(
    build_option: Build, pattern: str, setting: dict[str, Any], who: str
) -> None:
    both = {"pattern": "embed|mlp", **setting}
    option = build_option("muon", groups={"overrides": [both]})
    option.build(OptimizerTarget(Network(), "cpu"))
    option = build_option("muon", groups={"overrides": [{"pattern": pattern, **setting}]})
    with pytest.raises(ConfigError) as caught:
        option.build(OptimizerTarget(Network(), "cpu"))
    [problem] = caught.value.problems
    assert problem.key == f"optimizer.groups.overrides.0.{next(iter(setting))}"
    assert f"has no effect: {who} all parameters that {pattern!r} matches" in problem.message
