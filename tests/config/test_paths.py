from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.load import load_config, sweep_jobs
from launcher.config.paths import CONF, RECIPES, expand_home, shown

ROOT = Path(__file__).parents[2]


def test_packaged_files_are_shown_from_the_project_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(CONF / "optimizer" / "sgd.yaml") == "conf/optimizer/sgd.yaml"
    assert shown(RECIPES / "quick.yaml") == "recipes/quick.yaml"
    assert shown(tmp_path / "mine" / "a.yaml") == "mine/a.yaml"
    assert shown(Path("/elsewhere/a.yaml")) == "/elsewhere/a.yaml"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data.files=~/notes.txt", "data.files='{home}/notes.txt'"),
        ("data.files=[~/a/**/*.txt,b,~]", "data.files=['{home}/a/**/*.txt',b,'{home}']"),
        ("data.files=~/a b.txt", "data.files='{home}/a b.txt'"),
        ("model.path=~no_such_user/x", "model.path=~no_such_user/x"),
        ("data.files='~/it is quoted'", "data.files='~/it is quoted'"),
        ("~observer", "~observer"),
        ("name=a~b", "name=a~b"),
    ],
)
def test_the_home_folder_may_be_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "a home"))
    assert expand_home([word]) == [expected.format(home=tmp_path / "a home")]


def test_files_in_the_home_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a home"
    monkeypatch.setenv("HOME", str(home))
    one = load_config(["data=text", "data.files=~/notes.txt"])
    assert one.config.to_json().count(f'"{home}/notes.txt"') == 1
    [first, second] = sweep_jobs(["data=text", "data.files=~/a.txt,~/b.txt"])
    assert f"data.files='{home}/a.txt'" in first
    assert f"data.files='{home}/b.txt'" in second


def test_as_a_wheel_lays_it_out_and_from_another_folder(tmp_path: Path) -> None:
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "launcher", site / "launcher", ignore=ignored)
    shutil.copytree(CONF, site / "launcher" / "conf")
    shutil.copytree(RECIPES, site / "launcher" / "recipes")
    code = (
        "import launcher; from launcher.config.load import load_config;"
        "one = load_config(['recipe=quick']);"
        "print(launcher.__file__); print(one.provenance['max_steps']);"
        "print(one.provenance['optimizer.lr'])"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    file, steps, lr = out.stdout.splitlines()
    assert Path(file).is_relative_to(site)
    assert steps.startswith("recipes/quick.yaml:")
    assert lr.startswith("conf/optimizer/adamw.yaml:")
