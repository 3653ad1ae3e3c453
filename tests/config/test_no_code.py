"""No file and no word of a config runs code, in any of the ways that Hydra offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.config import multirun
from launcher.config.load import LoadedConfig, load_config
from launcher.config.multirun import Place
from launcher.errors import ConfigError, TrainctlError

# Importing it, calling `run` or building `Run` leaves a file behind.
EVIL = """
from pathlib import Path
Path("ran").touch()
def run(*args, **kwargs): ...
class Run:
    def __init__(self, *args, **kwargs): ...
"""
FORMATTER = "formatters: {x: {'()': evil.run}}"
HANDLER = "handlers: {x: {class: evil.Run}}"
EXTERNAL = "handlers: {x: {class: logging.StreamHandler, stream: 'ext://evil.run'}}"
LOGGING = "version: 1\n"
BELOW_ROOT = "# @package _global_\n"
PRIMARY = "defaults: [config, _self_]\n"


def hydra(text: str) -> str:
    """A part of a recipe with settings of Hydra."""
    return f"{BELOW_ROOT}hydra: {{{text}}}\n"


ATTACKS: dict[str, tuple[dict[str, str], list[str]]] = {
    "formatter": ({"u": f"{PRIMARY}hydra: {{job_logging: {{{FORMATTER}}}}}\n"}, ["-cn", "u"]),
    "hydra formatter": ({"u": f"{PRIMARY}hydra: {{hydra_logging: {{{FORMATTER}}}}}"}, ["-cn", "u"]),
    "handler": ({"recipe/e": hydra(f"job_logging: {{{HANDLER}}}")}, ["recipe=e"]),
    "ext": ({"recipe/e": hydra(f"hydra_logging: {{{EXTERNAL}}}")}, ["recipe=e"]),
    "callback": ({"recipe/e": hydra("callbacks: {x: {_target_: evil.Run}}")}, ["recipe=e"]),
    "environment": ({"recipe/e": hydra("job: {env_set: {PYTHONPATH: /x}}")}, ["recipe=e"]),
    "search path": ({"u": f"{PRIMARY}hydra: {{searchpath: ['pkg://evil']}}\n"}, ["-cn", "u"]),
    "package header": (
        {"recipe/e": f"# @package hydra.job_logging\n{LOGGING}{HANDLER}\n"},
        ["recipe=e"],
    ),
    "relative package header": (
        {"recipe/e": f"# @package _global_.hydra.job_logging\n{LOGGING}{HANDLER}\n"},
        ["recipe=e"],
    ),
    "package in a defaults list": (
        {
            "recipe/e": f"{BELOW_ROOT}defaults: ['/recipe/part@hydra.job_logging']\n",
            "recipe/part": f"{LOGGING}{HANDLER}\n",
        },
        ["recipe=e"],
    ),
    "another logging option": (
        {"hydra/job_logging/e": f"{LOGGING}{HANDLER}\n"},
        ["hydra/job_logging=e"],
    ),
    "option in a defaults list": (
        {
            "recipe/e": f"{BELOW_ROOT}defaults: [override /hydra/hydra_logging: e]\n",
            "hydra/hydra_logging/e": f"{LOGGING}{HANDLER}\n",
        },
        ["recipe=e"],
    ),
    "packaged option replaced": ({"hydra/job_logging/none": f"{LOGGING}{HANDLER}\n"}, []),
    "launcher replaced": ({"hydra/launcher/basic": "_target_: evil.Run\n"}, []),
    "sweeper of a file": ({"hydra/sweeper/e": "params: null\n"}, ["hydra/sweeper=e"]),
    "aliased": (
        {"recipe/e": hydra("job_logging: '${bad}'") + f"bad: {{{HANDLER}}}\n"},
        ["recipe=e"],
    ),
    "merge key": (
        {"recipe/e": f"{BELOW_ROOT}b: &b {{job_logging: {{{HANDLER}}}}}\nhydra: {{<<: *b}}\n"},
        ["recipe=e"],
    ),
    "jobs of the sweeper": (
        {
            "u": f"{PRIMARY}hydra: {{sweeper: {{params: {{recipe: 'quick,e'}}}}}}\n",
            "recipe/e": hydra(f"job_logging: {{{LOGGING.strip()}, {HANDLER}}}"),
        },
        ["-cn", "u"],
    ),
    "shell line for Slurm": ({"recipe/e": hydra("launcher: {setup: [rm x]}")}, ["recipe=e"]),
    "line break for Slurm": ({"recipe/e": hydra('launcher: {comment: "x\\nrm x"}')}, ["recipe=e"]),
    "resolver": ({"recipe/e": hydra("sweep: {dir: '${oc.env:HOME}'}")}, ["recipe=e"]),
    "folder of the run": ({"recipe/e": hydra("run: {dir: '${hydra:job.name}'}")}, ["recipe=e"]),
    "word": ({}, ["+hydra.job_logging.handlers.x={class: evil.Run}"]),
    "whole node": ({}, ["hydra={job_logging: {handlers: {x: {class: evil.Run}}}}"]),
    "search path word": ({}, ["hydra.searchpath=[pkg://evil]"]),
    "arguments": ({}, ["+optimizer._args_=[1]"]),
    "group at Hydra's key": ({"recipe/p": LOGGING}, ["+recipe@hydra.job_logging=p"]),
}


NOT_READ = {"packaged option replaced", "launcher replaced"}
"""Hydra's own files come first in the search path."""
ONLY_IN_SWEEPS = {"jobs of the sweeper", "sweeper of a file"}


def never(job: LoadedConfig, words: Sequence[str], place: Place | None) -> float:
    return 0.0


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module `evil`, current and importable."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_config_runs_no_code(attack: str, evil: Path, user_dir: Path) -> None:
    files, words = ATTACKS[attack]
    write(user_dir, files)
    argv = ["-m", "seed=1", *words, "--config-dir", str(user_dir)]
    refused = False
    try:
        multirun.run_multirun(never, argv, admit=lambda jobs: True)
    except TrainctlError:
        refused = True
    assert refused or attack in NOT_READ
    assert not (evil / "ran").exists()


@pytest.mark.parametrize("attack", sorted(ATTACKS.keys() - ONLY_IN_SWEEPS - NOT_READ))
def test_check_refuses_it_too(attack: str, evil: Path, user_dir: Path) -> None:
    files, words = ATTACKS[attack]
    write(user_dir, files)
    name = words.pop() if (words := list(words))[:1] == ["-cn"] else "config"
    with pytest.raises(ConfigError) as caught:
        load_config([word for word in words if word != "-cn"], name, [user_dir])
    assert all(problem.origin for problem in caught.value.problems)


ALLOWED: list[Any] = [
    ["hydra.sweep.dir=a b", "hydra.verbose=false", "hydra/launcher=basic"],
    ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2"],
]


@pytest.mark.parametrize("words", ALLOWED)
def test_plain_settings_of_a_sweep_are_allowed(evil: Path, words: list[str]) -> None:
    seeds = []

    def launch(job: LoadedConfig, words: Sequence[str], place: Place | None) -> float:
        seeds.append(job.config.seed)
        return 0.0

    quoted = [word.replace("a b", "'a b'") for word in words]
    multirun.run_multirun(launch, ["-m", "seed=1,2", *quoted], admit=lambda jobs: True)
    assert seeds == [1, 2]
    if "hydra.sweep.dir=a b" in words:
        assert (evil / "a b" / "multirun.yaml").is_file()
