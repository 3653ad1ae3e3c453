from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.config.compose import compose
from launcher.config.load import LoadedConfig, load_config
from launcher.config.problems import leaves
from launcher.config.resume_rules import TABLE, Change, apply, classify, rule_of
from launcher.config.schema import RunConfig
from launcher.contracts import GROUPS
from launcher.errors import ConfigError
from launcher.registry import kinds, option_class


def refusals(stored: str, words: list[str], *allow: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        apply(stored, words, allow)
    return [(problem.key, problem.message) for problem in caught.value.problems]


def test_every_key_is_classed(packaged: LoadedConfig) -> None:
    for key, _ in leaves(packaged.composed.mapping):
        assert rule_of(key)[0] in {"safe", "allow", "impossible"}
    for group in GROUPS:
        for kind in kinds(group):
            for field in option_class(group, kind).model_fields:
                assert rule_of(f"{group}.{field}")


def test_the_table_names_only_keys_that_are_there(packaged: LoadedConfig) -> None:
    known = {key for key, _ in leaves(packaged.composed.mapping)}
    known |= {key.rpartition(".")[0] for key in known} | set(GROUPS)
    for group in GROUPS:
        for kind in kinds(group):
            known |= {f"{group}.{field}" for field in option_class(group, kind).model_fields}
    assert TABLE.keys() <= known
    assert set(RunConfig.model_fields) <= TABLE.keys()


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("max_steps", "safe"),
        ("optimizer.lr", "safe"),
        ("optimizer.weight_decay", "safe"),
        ("optimizer.betas", "allow"),
        ("optimizer.kind", "impossible"),
        ("optimizer.groups.decay", "allow"),
        ("model.num_layers", "impossible"),
        ("task.kind", "impossible"),
        ("task.seq_len", "allow"),
        ("accumulation.samples_per_step", "allow"),
        ("accumulation.micro_batch_size", "allow"),
        # A run that found no room can be given more.
        ("accumulation.memory_limit_gib", "safe"),
        ("launch.device", "safe"),
        ("parallelism.kind", "safe"),
        ("parallelism.gradient_compression", "allow"),
        ("checkpoint.keep", "safe"),
        ("checkpoint.kind", "impossible"),
    ],
)
def test_the_longest_entry_decides(key: str, kind: str) -> None:
    assert rule_of(key)[0] == kind


def test_an_unknown_key_has_no_rule() -> None:
    with pytest.raises(KeyError):
        rule_of("nothing.like.this")


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ({"seed": 1}, {"seed": 1}, []),
        ({"seed": 1}, {"seed": 2}, [("seed", 1, 2)]),
        ({"data": {"a": [1]}}, {"data": {"a": [1, 2]}}, [("data.a", [1], [1, 2])]),
        ({"data": {"a": 1}}, {"data": {"b": 2}}, [("data.a", 1, None), ("data.b", None, 2)]),
        ({"data": {"a": None}}, {"data": {}}, [("data", None, {})]),
    ],
)
def test_classify(
    old: dict[str, Any], new: dict[str, Any], changed: list[tuple[str, Any, Any]]
) -> None:
    assert [(change.key, change.old, change.new) for change in classify(old, new)] == changed


def test_nothing_typed_changes_nothing(stored: str, packaged: LoadedConfig) -> None:
    assert apply(stored, [], []) == (packaged.config, [])


def test_safe_changes_are_applied_and_reported(stored: str, packaged: LoadedConfig) -> None:
    config, changes = apply(stored, ["optimizer.lr=1", "max_steps=900", "logging=quiet"], [])
    assert (config.optimizer.lr, config.max_steps) == (1.0, 900)
    assert config.logging == RunConfig.from_mapping(compose(["logging=quiet"]).mapping).logging
    assert ("optimizer.lr", packaged.config.optimizer.lr, 1.0, "safe") in {
        (c.key, c.old, c.new, c.kind) for c in changes if not isinstance(c.old, list)
    }
    assert {c.key.partition(".")[0] for c in changes} == {"optimizer", "max_steps", "logging"}


def test_a_value_typed_as_it_was_is_no_change(stored: str) -> None:
    values = json.loads(stored)
    words = [f"optimizer.lr={values['optimizer']['lr']}", f"seed={values['seed']}"]
    assert apply(stored, words, [])[1] == []


def test_what_changes_the_run_wants_to_be_allowed(stored: str) -> None:
    [(key, message)] = refusals(stored, ["seed=3"])
    assert key == "seed"
    assert "add --allow seed" in message
    assert [c.key for c in apply(stored, ["seed=3"], ["seed"])[1]] == ["seed"]
    words = ["scheduler=linear", "scheduler.warmup_steps=5"]
    assert {key.partition(".")[0] for key, _ in refusals(stored, words, "seed")} == {"scheduler"}
    config, changes = apply(stored, words, ["scheduler"])
    assert config.scheduler.kind == "linear"
    assert {change.kind for change in changes} == {"allow"}


def test_what_is_impossible_stays_so_when_allowed(stored: str) -> None:
    [(key, message)] = refusals(stored, ["model.num_layers=3"], "model")
    assert (key, message.partition(":")[0]) == ("model.num_layers", "cannot change on resume")
    assert refusals(stored, ["name=other"], "name")[0][0] == "name"


def test_every_problem_of_a_resume_at_once(stored: str) -> None:
    words = ["sed=1", "name=x", "precision=bf17", "recipe=quick", "~data", "hydra.job.name=x", "("]
    found = refusals(stored, words, "optimizr", "seed")
    assert sorted(key for key, _ in found) == sorted(
        ["sed", "name", "precision", "recipe", "data", "hydra.job.name", "", "optimizr"]
    )
    messages = dict(found)
    assert "did you mean 'seed'" in messages["sed"]
    assert "did you mean 'optimizer'" in messages["optimizr"]


def test_wrong_values_and_broken_rules(stored: str) -> None:
    assert refusals(stored, ["optimizer.lr=-1"]) == [
        ("optimizer.lr", "must be greater than 0, but is -1")
    ]
    assert refusals(stored, ["max_steps=null"])[0][0] == "max_steps"
    assert refusals(stored, ["+model._target_=os.system"])[0][0] == "model._target_"


def test_an_unknown_allow_is_an_error_even_without_changes(stored: str) -> None:
    assert refusals(stored, [], "optimizer.l")[0][0] == "optimizer.l"


def test_stored_text_is_not_interpreted(stored: str) -> None:
    mapping = json.loads(stored)
    mapping["task"]["sample_prompt"] = r"${optimizer.lr} \${x} $ {a} \\${b}"
    text = RunConfig.from_mapping(mapping).to_json()
    config, changes = apply(text, ["max_steps=5"], [])
    assert [change.key for change in changes] == ["max_steps"]
    assert json.loads(config.to_json())["task"] == mapping["task"]


def test_an_alias_on_resume_sees_the_stored_run(stored: str) -> None:
    config, _ = apply(stored, ["eval_every_steps=${log_every_steps}"], [])
    assert config.eval_every_steps == 10


def test_config_json_of_another_shape(stored: str) -> None:
    mapping = json.loads(stored)
    mapping["old_key"] = 1
    with pytest.raises(ConfigError, match="old_key: no such setting"):
        apply(json.dumps(mapping), [], [])


def test_changes_are_values() -> None:
    assert Change("a", 1, 2, "safe", "r") == Change("a", 1, 2, "safe", "r")


def test_an_unchanged_value_was_set_by_the_run() -> None:
    stored = load_config(["optimizer=adafactor"]).config.to_json()
    with pytest.raises(ConfigError) as caught:
        apply(stored, ["optimizer.lr=1e-3"], [])
    [problem] = caught.value.problems
    assert (problem.key, problem.origin) == ("scheduler.kind", "the run's config.json")
    with pytest.raises(ConfigError) as caught:
        apply(stored, ["max_steps=-1"], [])
    assert caught.value.problems[0].origin == "command line: max_steps=-1"


def test_another_engine_and_number_of_ranks_need_no_permission(packaged: LoadedConfig) -> None:
    stored = packaged.config.to_json()
    config, changes = apply(stored, ["parallelism=ddp", "launch.processes=2"], [])
    assert config.launch.ranks == 2
    assert {change.kind for change in changes} == {"safe"}
    back, _ = apply(config.to_json(), ["parallelism=single", "launch.processes=1"], [])
    assert back == packaged.config


def test_another_global_batch_needs_permission() -> None:
    words = ["accumulation=steps", "accumulation.micro_batch_size=2"]
    stored = load_config(words).config.to_json()
    more = ["parallelism=ddp", "launch.processes=2"]
    [(key, message)] = refusals(stored, more)
    assert key == "accumulation"
    assert "another global batch" in message
    assert apply(stored, more, ["accumulation"])[0].launch.ranks == 2
