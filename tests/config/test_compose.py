from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from launcher.config import _hydra_ext
from launcher.config.compose import Composed, chooses_group, compose, make_loader
from launcher.config.load import load_config
from launcher.config.problems import leaves
from launcher.errors import ConfigError

WORDS: list[list[str]] = [
    [],
    ["optimizer=sgd", "optimizer.lr=0.5", "optimizer.lr=0.25"],
    ["recipe=quick", "max_steps=7"],
    ["recipe=stdlib_llama", "optimizer={lr: 0.1, eps: 1e-6}"],
    ["recipe=text_finetune", "model.path=/x", "data.files=[a,b]"],
    ["++seed=3", "name='a b'", "optimizer.betas=[0.5, 0.5]", "logging=quiet"],
    ["max_grad_value=${optimizer.lr}", "name=${.run_root}"],
]


def written(origin_text: str, where: str, leaf: str) -> Any:
    """The value in a line or a word, read by other means than the code under test."""
    if where == "command line":
        [word] = OverridesParser.create().parse_overrides([origin_text])
        value: Any = word.value()
        for part in leaf.removeprefix(word.key_or_group).split(".")[1:]:
            value = value[part]
        return value
    [value] = OmegaConf.to_container(OmegaConf.create(origin_text), resolve=False).values()  # type: ignore[union-attr] # a line of YAML is a mapping
    return value


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_the_last_writer_of_every_leaf_wrote_its_value(words: Sequence[str]) -> None:
    composed = compose(words)
    for leaf, value in leaves(composed.mapping):
        last = composed.why(leaf)[-1]
        expected = written(last.text, last.where, leaf)
        if isinstance(expected, str) and "${" in expected:
            meant = {"${optimizer.lr}": "optimizer.lr", "${.run_root}": "run_root"}[expected]
            expected = dict(leaves(composed.mapping))[meant]
        assert expected == value, (leaf, last)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_leaving_out_hydras_own_config_changes_nothing(words: Sequence[str]) -> None:
    with _hydra_ext.search_path_of(()):
        fast, whole = make_loader(), make_loader()
    parsed = OverridesParser.create().parse_overrides(list(words))
    groups = [str(word.input_line) for word in parsed if chooses_group(word, fast)]
    cfg = fast._without_hydra("config", groups)
    expected = whole.load_configuration("config", groups, RunMode.RUN)
    assert cfg is not None
    with open_dict(expected):
        del expected["hydra"]
    assert cfg == expected
    assert [*cfg] == [*expected]
    assert cfg._get_flag("struct")
    assert fast.read == whole.read


def test_what_is_about_hydra_is_composed_with_it(user_dir: Path) -> None:
    (user_dir / "mine.yaml").write_text("defaults: [config, _self_]\nhydra: {verbose: true}\n")
    with _hydra_ext.search_path_of([user_dir]):
        loader = make_loader()
    assert loader._without_hydra("config", ["hydra/launcher=basic"]) is None
    assert loader._without_hydra("mine", []) is None
    assert "hydra" not in loader.compose("mine", [])
    (user_dir / "hydra" / "launcher").mkdir(parents=True)
    assert loader._without_hydra("config", []) is None


def test_all_writers_are_kept_in_order() -> None:
    composed = compose(["recipe=quick", "max_steps=7", "max_steps=8"])
    assert [str(origin) for origin in composed.why("max_steps")][1:] == [
        "recipes/quick.yaml:4: max_steps: 50",
        "command line: max_steps=7",
        "command line: max_steps=8",
    ]
    assert composed.why("max_steps")[0].where.startswith("conf/config.yaml:")
    assert composed.mapping["max_steps"] == 8


def test_one_element_of_a_list_is_a_writer_of_the_list() -> None:
    composed = compose(["optimizer.betas.1=0.5"])
    assert composed.mapping["optimizer"]["betas"] == [0.9, 0.5]
    assert composed.origin("optimizer.betas") == "command line: optimizer.betas.1=0.5"


def test_a_block_list_is_quoted_whole(user_dir: Path) -> None:
    (user_dir / "optimizer").mkdir()
    (user_dir / "optimizer" / "mine.yaml").write_text(
        "kind: adamw\ndefaults: [adamw, _self_]\n"
        "betas: # momentum\n  - 0.8\n  - 0.9\nlr: 1 # high\n"
    )
    composed = compose(["optimizer=mine"], config_dirs=[user_dir])
    assert composed.mapping["optimizer"]["betas"] == [0.8, 0.9]
    assert composed.origin("optimizer.betas").endswith(
        "optimizer/mine.yaml:3: betas: # momentum - 0.8 - 0.9"
    )
    assert composed.origin("optimizer.lr").endswith("optimizer/mine.yaml:6: lr: 1")


def test_anchors_and_merge_keys(user_dir: Path) -> None:
    (user_dir / "recipe").mkdir()
    (user_dir / "recipe" / "r.yaml").write_text(
        "# @package _global_\noptimizer: &o\n  lr: 0.5\n  eps: &e 1.0e-5\n"
        "checkpoint:\n  every_minutes: *e\n"
    )
    composed = compose(["recipe=r"], config_dirs=[user_dir])
    assert composed.mapping["checkpoint"]["every_minutes"] == 1e-5
    assert "r.yaml:6: every_minutes: *e" in composed.origin("checkpoint.every_minutes")


def test_a_users_folder_adds_and_replaces(user_dir: Path) -> None:
    (user_dir / "optimizer").mkdir()
    (user_dir / "optimizer" / "sgd.yaml").write_text("kind: sgd\nlr: 7.0\n")
    (user_dir / "optimizer" / "fast.yaml").write_text(
        "kind: adamw\ndefaults: [adamw, _self_]\nlr: 0.9\n"
    )
    assert compose(["optimizer=sgd"], config_dirs=[user_dir]).mapping["optimizer"] == {
        "kind": "sgd",
        "lr": 7.0,
    }
    added = load_config(["optimizer=fast"], config_dirs=[user_dir])
    assert added.config.optimizer.lr == 0.9
    assert compose(["optimizer=sgd"]).mapping["optimizer"]["lr"] == 0.5


@pytest.mark.parametrize("name", ["", "x" * 300, "a\0b", "/etc/passwd", "../conf/nothing"])
def test_a_primary_config_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no primary config"):
        compose([], name)


def test_the_first_folder_wins_and_the_environment_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in "abc"]
    for seed, folder in enumerate(folders, 1):
        (folder / "recipe").mkdir(parents=True)
        (folder / "recipe" / "r.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
    (folders[2] / "recipe" / "only.yaml").write_text("# @package _global_\nseed: 9\n")
    monkeypatch.setenv("TRAINCTL_CONFIG_DIR", f"{folders[1]}:{folders[2]}")
    assert compose(["recipe=r"], config_dirs=[folders[0]]).mapping["seed"] == 1
    assert compose(["recipe=r"]).mapping["seed"] == 2
    assert compose(["recipe=only"]).mapping["seed"] == 9


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINCTL_CONFIG_DIR", str(tmp_path / "env"))
    with pytest.raises(ConfigError) as caught:
        compose([], config_dirs=[tmp_path / "flag"])
    assert [problem.origin for problem in caught.value.problems] == [
        "--config-dir",
        "TRAINCTL_CONFIG_DIR",
    ]


def test_another_primary_config(user_dir: Path) -> None:
    (user_dir / "mine.yaml").write_text("defaults: [config, _self_]\nseed: 5\n")
    composed = compose([], "mine", [user_dir])
    assert composed.mapping["seed"] == 5
    assert composed.mapping["optimizer"]["kind"] == "adamw"
    with pytest.raises(ConfigError, match="no primary config 'mne'; did you mean 'mine'"):
        compose([], "mne", [user_dir])


@pytest.mark.parametrize(
    "word",
    [
        "+model._target_=os.system",
        "+optimizer.groups={_target_: os.system}",
        "data={_target_: os.system}",
        "optimizer.groups.overrides=[{pattern: a, deep: {_target_: os.system}}]",
        "+hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks={x: {_target_: os.system}}",
        "++_target_=os.system",
    ],
)
def test_no_word_names_code(word: str) -> None:
    with pytest.raises(ConfigError, match="_target_ is not allowed") as caught:
        compose([word])
    assert f"command line: {word}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("optimizer/evil", "kind: adamw\n_target_: os.system\n", 2),
        ("optimizer/evil", "kind: adamw\ngroups:\n  decay: [a, {_target_: os.system}]\n", 3),
        (
            "recipe/evil",
            "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: a.b\n",
            5,
        ),
    ],
)
def test_no_file_names_code(user_dir: Path, name: str, text: str, line: int) -> None:
    file = user_dir / f"{name}.yaml"
    file.parent.mkdir()
    file.write_text(text)
    group, _, option = name.partition("/")
    with pytest.raises(ConfigError, match="_target_ is not allowed") as caught:
        compose([f"{group}={option}"], config_dirs=[user_dir])
    assert f"{file}:{line}: _target_" in str(caught.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name=${oc.env:HOME}", "only plain aliases"),
        ("name=${oc.decode:1}", "only plain aliases"),
        ("name=${now:%Y}", "only plain aliases"),
        ("name=${hydra:job.name}", "only plain aliases"),
        ("name='${oc.env:${run_root}}'", "only plain aliases"),
        ("name=x${oc.env:HOME}y", "only plain aliases"),
        (r"name='\\\\${oc.env:HOME}'", "only plain aliases"),
        ("name=${run_rot}", "refers to run_rot, which does not exist; did you mean 'run_root'"),
        ("name=${hydra.job.name}", "refers to hydra.job.name, which does not exist"),
        ("name=${name}", "refers to a missing key, or to itself"),
        ("name=${...name}", "refers to a missing key, or to itself"),
        ("name=???", "has no value yet"),
    ],
)
def test_only_plain_aliases_are_followed(
    word: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/secret")
    with pytest.raises(ConfigError) as caught:
        compose([word])
    assert message in str(caught.value)
    assert "/secret" not in str(caught.value)


def test_aliases_are_followed(user_dir: Path) -> None:
    words = ["name=${run_root}-${seed}", "max_grad_norm=${optimizer.betas[0]}", r"run_root=a"]
    mapping = compose(words).mapping
    assert mapping["name"] == "a-0"
    assert mapping["max_grad_norm"] == 0.9


def test_a_defaults_list_does_not_ask_the_world(
    user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHICH", "sgd")
    (user_dir / "mine.yaml").write_text(
        "defaults:\n  - config\n  - override optimizer: ${oc.env:WHICH}\n  - _self_\n"
    )
    with pytest.raises(ConfigError, match=r"defaults: only plain aliases") as caught:
        compose([], "mine", [user_dir])
    assert "mine.yaml:1: defaults:" in str(caught.value)


def test_circles_are_found_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["name=${run_root}", "run_root=${name}", "seed=${max_steps}"])
    assert [problem.key for problem in caught.value.problems] == ["name", "run_root"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: adamw\nlr: [1\n", r"not valid YAML: .*"),
        ("kind: adamw\nlr: 1\nlr: 2\n", r"not valid YAML: .*duplicate key"),
        ("- a\n- b\n", r"optimizer: must be a mapping"),
        ("just text\n", r"optimizer\.kind: must name the kind"),
        ("kind: adamw\ndefaults: {a: b}\n", r"bad"),
        ("kind: adamw\ndefaults: [nothing]\n", r"there is no 'nothing'"),
        (
            "kind: adamw\ndefaults: [_groups, _slf_]\n",
            r"there is no '_slf_'; did you mean '_self_'",
        ),
        ("kind: !!python/object/apply:os.system [ls]\n", r"not valid YAML"),
        ("\tkind: adamw\n", r"not valid YAML"),
    ],
)
def test_files_that_cannot_be_composed_are_named(user_dir: Path, text: str, message: str) -> None:
    (user_dir / "optimizer").mkdir()
    (user_dir / "optimizer" / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(["optimizer=bad"], config_dirs=[user_dir])
    assert len(caught.value.problems) == 1
    assert "bad" in str(caught.value)


def test_a_file_that_is_no_text(user_dir: Path) -> None:
    (user_dir / "optimizer").mkdir()
    (user_dir / "optimizer" / "bad.yaml").write_bytes(b"kind: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        compose(["optimizer=bad"], config_dirs=[user_dir])


def test_hydra_words_pass_and_leave_no_trace() -> None:
    assert compose(["hydra.verbose=true", "hydra/launcher=basic"]).mapping == compose([]).mapping
    with pytest.raises(ConfigError, match=r"hydra\.foo"):
        compose(["hydra.foo=1"])


def test_composing_inside_another_hydra_application(tmp_path: Path) -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert isinstance(compose([]), Composed)
        assert GlobalHydra.instance().hydra is outer


@pytest.mark.parametrize("text", ["max_steps: 5\n", "optimizer:\n  lr: 0.1\n"])
def test_a_primary_config_without_the_packaged_one_is_one_problem(
    user_dir: Path, text: str
) -> None:
    (user_dir / "exp.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config([], "exp", [user_dir])
    [problem] = caught.value.problems
    assert "begin it with `defaults: [config, _self_]`" in problem.message
    assert problem.origin.endswith("exp.yaml")


def test_the_documented_ways_to_keep_an_experiment(user_dir: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    recipe, primary = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (user_dir / "recipe").mkdir()
    (user_dir / "recipe" / "small.yaml").write_text(recipe)
    (user_dir / "small.yaml").write_text(primary)
    for words, name in ((["recipe=small"], "config"), ([], "small")):
        config = load_config(words, name, [user_dir]).config
        assert (config.optimizer.kind, config.max_steps, config.optimizer.lr) == ("sgd", 200, 0.1)
        changed = load_config([*words, "max_steps=300"], name, [user_dir]).config
        assert changed.max_steps == 300
