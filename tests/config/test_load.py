from __future__ import annotations

import pickle
import subprocess
import sys
import time

import pytest

from launcher.config.load import LoadedConfig, load_config, load_jobs, sweep_jobs
from launcher.config.problems import leaves
from launcher.errors import ConfigError


def problems(*words: str) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    return [(problem.key, problem.message, problem.origin) for problem in caught.value.problems]


def test_the_packaged_config_passes(packaged: LoadedConfig) -> None:
    assert packaged.config.optimizer.kind == "adamw"
    provenance = packaged.provenance
    assert provenance.keys() == {key for key, _ in leaves(packaged.composed.mapping)}
    assert all(provenance.values())
    assert provenance["optimizer.lr"].startswith("conf/optimizer/adamw.yaml:4: lr: ")


@pytest.mark.parametrize(
    ("word", "key", "message"),
    [
        ("optimizer.l=1", "optimizer.l", "no such setting; did you mean 'optimizer.lr'?"),
        ("lr=1", "lr", "no such setting; did you mean 'optimizer.lr'?"),
        ("optimizr.lr=1", "optimizr.lr", "did you mean 'optimizer.lr'?"),
        ("optimzer=adamw", "optimzer", "did you mean 'optimizer'?"),
        ("optimizer=adamv", "optimizer", "no option 'adamv'; did you mean 'adam' or 'adamw'?"),
        ("optimizer=zzzzzz", "optimizer", "no option 'zzzzzz'; it can be: ada"),
        ("optimizer=_groups", "optimizer", "no option '_groups'"),
        ("optimizer=../optimizer/sgd", "optimizer", "no option '../optimizer/sgd'"),
        ("optimizer=null", "optimizer", "needs an option"),
        ("optimizer=[adamw]", "optimizer", "takes the name of one option"),
        ("+optimizer=sgd", "optimizer", "write optimizer=sgd without the +"),
        ("++optimizer=sgd", "optimizer", "is a group; write optimizer=sgd"),
        ("~optimizer", "optimizer", "choose one with optimizer=OPTION"),
        ("~optimizer.lr", "optimizer.lr", "cannot be left out"),
        ("~optimizer.l", "optimizer.l", "did you mean 'optimizer.lr'?"),
        ("optimizer@x=sgd", "optimizer", "optimizer"),
        ("optimizr@x=sgd", "optimizr", "did you mean 'optimizer'?"),
        ("recipe=quik", "recipe", "did you mean 'quick'?"),
        ("recipe=null", "recipe", "needs an option"),
        ("+seed=1", "seed", "is set already; leave out the +"),
        ("+optimizer.foo=1", "optimizer.foo", "no such setting"),
        ("+optimizer.bets=1", "optimizer.bets", "did you mean 'betas'?"),
        ("optimizer.betas.7=1", "optimizer.betas.7", "no such setting"),
        ("optimizer.lr.x=1", "optimizer.lr.x", "no such setting"),
        ("max_epochs.x=1", "max_epochs.x", "no such setting"),
        ("optimizer={l: 1}", "optimizer.l", "did you mean 'optimizer.lr'?"),
        ("optimizer.lr=1,2", "optimizer.lr", "run one job for each with -m"),
        ("optimizer.betas=1,2", "optimizer.betas", "-m, or write a list: optimizer.betas=[1,2]"),
        ("optimizer=adamw,sgd", "optimizer", "run one job for each with -m"),
        (f"optimizer={'x' * 300}", "optimizer", "no option"),
        (f"{'x' * 300}=1", "x" * 300, "no such setting"),
        ("optimizer.lr=range(1,3)", "optimizer.lr", "-m"),
        ("seed", "seed", "has no value; write seed=VALUE"),
        ("seed=(", "", "is not of the form key=value"),
        ("", "", "is not of the form key=value"),
        ("optimizer.nesterov=true", "optimizer.nesterov", "of optimizer=adamw; optimizer="),
        ("optimizer.lr=-1", "optimizer.lr", "must be greater than 0, but is -1"),
        ("hydra=x", "hydra", ""),
    ],
)
def test_every_wrong_word_is_answered(word: str, key: str, message: str) -> None:
    [(found_key, found_message, origin)] = problems(word)
    assert found_key == key
    assert message in found_message
    assert origin == f"command line: {word}"


def test_an_unknown_key_where_none_is_known_gets_no_empty_list() -> None:
    [(key, message, _)] = problems("scheduler=sequence", "+scheduler.stages.0.foo=3")
    assert (key, message) == ("scheduler.stages.0.foo", "no such setting")


def test_every_problem_is_reported_at_once() -> None:
    words = ["optimizer.l=1", "sed=2", "x", "optimizer=adamv", "max_steps=-1", "name=${nme}"]
    found = problems(*words, "run_root=/tmp/${oc.env:HOME}", "task.seq_len=0")
    assert sorted(key for key, _, _ in found) == sorted(
        ["optimizer.l", "sed", "x", "optimizer", "max_steps", "name", "run_root", "task.seq_len"]
    )
    assert all(origin.startswith("command line: ") for _, _, origin in found)


def test_rules_speak_after_the_values_are_right() -> None:
    found = problems("launch.processes=2", "task.seq_len=100000", "optimizer.zzz=1")
    assert {key for key, _, _ in found} == {
        "optimizer.zzz",
        "task.seq_len",
        "parallelism.kind",
    }


def test_the_origin_of_a_rules_problem_is_a_file() -> None:
    [(key, _, origin)] = problems("task.seq_len=2000", "recipe=quick")
    assert (key, origin) == ("task.seq_len", "command line: task.seq_len=2000")
    [(key, _, origin)] = problems("max_steps=null")
    assert (key, origin) == ("max_steps", "command line: max_steps=null")


def test_jobs_are_the_grid_of_the_basic_sweeper() -> None:
    words = ["optimizer.lr=0.1,0.2", "seed=range(0,2)", "optimizer=sgd"]
    assert sweep_jobs(words) == [
        [f"optimizer.lr={lr}", f"seed={seed}", "optimizer=sgd"]
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    assert sweep_jobs([]) == [[]]
    assert ["optimizer=sgd"] in sweep_jobs(["optimizer=glob(s*)"])
    with pytest.raises(ConfigError, match="no valid sweep"):
        sweep_jobs(["optimizer.lr=interval(0,1)"])
    with pytest.raises(ConfigError, match="not of the form"):
        sweep_jobs(["optimizer.lr=(", "seed=1,2"])


def test_all_jobs_are_checked_before_one_starts() -> None:
    assert [one.config.seed for one in load_jobs(["seed=1,2,3"])] == [1, 2, 3]
    with pytest.raises(ConfigError) as caught:
        load_jobs(["optimizer.lr=1,-2,x", "sed=1"])
    assert [problem.key for problem in caught.value.problems] == [
        "sed",
        "optimizer.lr",
        "optimizer.lr",
    ]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from launcher.config.load import load_config;"
        "from launcher.config.schema import json_schema; load_config([]); json_schema();"
        "print(*(m for m in ('torch', 'transformers', 'deepspeed', 'accelerate', 'rich')"
        " if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_ranks_read_configs_without_hydra(stored: str) -> None:
    code = (
        "import sys; from launcher.config.schema import RunConfig;"
        "RunConfig.from_json(sys.stdin.read());"
        "print(*(m for m in ('torch', 'hydra', 'omegaconf') if m in sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], input=stored, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == ""


def test_it_is_quick(packaged: LoadedConfig) -> None:
    before = time.process_time()
    load_config(["optimizer.lr=0.1"])
    assert time.process_time() - before < 0.6  # 0.09 s when idle


def test_an_error_comes_back_from_another_process() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["seed=x", "sed=1"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.problems == caught.value.problems
    assert str(again) == str(caught.value)
