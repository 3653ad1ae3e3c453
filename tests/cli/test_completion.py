"""Tab completion: what is offered, and that a real bash puts it where it belongs."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.object_type import ObjectType

from launcher.cli._candidates import candidates
from launcher.cli._presets import default_of, kind, presets, primary, summary
from launcher.cli.completion import main
from launcher.config import _hydra_ext
from launcher.config.compose import make_loader
from launcher.contracts import GROUPS

SHELL = """
trainctl() {{ "{python}" -m launcher "$@"; }}
eval "$(trainctl completion bash)"
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:@'
COMP_LINE=$1 COMP_POINT=${{#1}}
_trainctl trainctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    for name, text in {
        "optimizer/mine.yaml": "# My own AdamW. More.\ndefaults: [adamw, _self_]\nlr: 1.0e-4\n",
        "optimizer/adamw.yaml": "# Replaced.\nkind: adamw\n",
        "optimizer/_hidden.yaml": "kind: adamw\n",
        "recipe/night/long.yaml": "# @package _global_\n# Runs all night\n# on one card.\n\n# no\n",
        "recipe/broken.yaml": "]",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trainctl che", ["check "]),
        ("trainctl config sh", ["show "]),
        ("trainctl run optimizer", ["optimizer.", "optimizer="]),
        ("trainctl run optimizer=adamw optimizer.bet", ["optimizer.betas="]),
        ("trainctl run optimizer=sgd optimizer.bet", []),
        ("trainctl run optimizer=sgd optimizer.momen", ["optimizer.momentum="]),
        ("trainctl run optimizer.groups.lay", ["optimizer.groups.layer_decay="]),
        ("trainctl run optimizer=adamw,sg", ["optimizer=adamw,sgd "]),
        ("trainctl check ~optimizer.bet", ["~optimizer.betas="]),
        ("trainctl config explain optimizer.bet", ["optimizer.betas "]),
        ("trainctl config explain optimizer.lr optimizer.bet", ["optimizer.betas="]),
        ("trainctl run on_nonfinite=", ["on_nonfinite=skip ", "on_nonfinite=stop "]),
        ("trainctl run checkpoint.export=t", ["checkpoint.export=true "]),
        ("trainctl run max_s", ["max_steps="]),
        ("trainctl run --mult", ["--multirun "]),
        ("trainctl config show --js", ["--json "]),
        ("trainctl list optimizer.ada", ["optimizer.adamw "]),
        ("trainctl list chec", ["checkpoint "]),
        ("trainctl completion z", ["zsh "]),
        ("trainctl recipes sh", ["show "]),
        ("trainctl nonsense x", []),
        ("trainctl run optimizer=adamw ''", []),
    ],
)
def test_candidates(line: str, expected: list[str]) -> None:
    found = candidates(line)
    assert [word for word in found if word in expected] == expected
    if not expected:
        assert found == expected


def test_candidates_fit_what_was_typed() -> None:
    for last in (
        "",
        "o",
        "optimizer=",
        "optimizer=a",
        "model.",
        "--",
        "+",
        "a=b=c",
        "..",
        "=",
        ".x",
    ):
        for line in (f"trainctl {last}", f"trainctl run {last}", f"trainctl config diff {last}"):
            assert all(word.startswith(last) for word in candidates(line))


def test_the_users_folders_are_known(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = f"--config-dir {user_folder}"
    assert candidates("trainctl run optimizer=mi") == []
    assert candidates(f"trainctl run {flag} optimizer=mi") == ["optimizer=mine "]
    assert candidates(f"trainctl run --config-dir={user_folder} recipe=ni") == [
        "recipe=night/long "
    ]
    monkeypatch.setenv("TRAINCTL_CONFIG_DIR", str(user_folder))
    assert candidates("trainctl run optimizer=mi") == ["optimizer=mine "]
    assert candidates("trainctl run optimizer=mine optimizer.bet") == ["optimizer.betas="]
    assert candidates("trainctl recipes show bro") == ["broken "]
    assert candidates("trainctl config diff ni") == ["night/long "]


def test_presets_are_those_of_hydra(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINCTL_CONFIG_DIR", str(user_folder))
    with _hydra_ext.search_path_of([]):
        repository = make_loader().repository
    for group in (*GROUPS, "recipe"):
        known = {
            name
            for name in repository.get_group_options(group, ObjectType.CONFIG)
            if not name.startswith("_")
        }
        assert {name for name in presets(group) if "/" not in name} == known
    assert presets("optimizer")["adamw"] == user_folder / "optimizer" / "adamw.yaml"


def test_what_files_say(user_folder: Path) -> None:
    mine = presets("optimizer", [user_folder])["mine"]
    assert (summary(mine), kind(mine)) == ("My own AdamW", "adamw")
    found = presets("recipe", [user_folder])
    assert summary(found["night/long"]) == "Runs all night on one card"
    assert (kind(found["broken"]), default_of(found["broken"], "optimizer")) == (None, None)
    assert default_of(primary(), "optimizer") == "adamw"
    assert default_of(primary(), "recipe") is None


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("trainctl ch", ["check "]),
        ("trainctl run optimizer=sg", ["sgd "]),
        ("trainctl run model=llama optimizer=", ["adamw ", "sgd "]),
        ("trainctl run optimizer.weight_d", ["optimizer.weight_decay="]),
        ("trainctl run on_nonfinite=sk", ["skip "]),
        ("trainctl run nothing_like_it", [""]),
    ],
)
def test_bash_replaces_only_what_it_will(line: str, replies: list[str]) -> None:
    script = SHELL.format(python=sys.executable)
    ended = subprocess.run(
        ["bash", "-c", script, "bash", line], text=True, capture_output=True, check=True
    )
    assert ended.stderr == ""
    assert set(replies) <= set(ended.stdout.split("\n"))


@pytest.mark.parametrize("line", ["run data.files=/tm", "run model.path=", "run --config-dir /tm"])
def test_where_there_is_nothing_the_shell_completes_paths(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty candidate would be one, and keep bash from its own."""
    assert main(["query", f"trainctl {line}"]) == 0
    assert capsys.readouterr().out == ""
    script = SHELL.format(python=sys.executable)
    words = ["bash", "-c", script, "bash", f"trainctl {line}"]
    ended = subprocess.run(words, text=True, capture_output=True, check=True)
    assert ended.stdout == "" or ended.stdout == "\n"


def test_hooks_are_valid_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bash"]) == 0
    hook = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=hook, text=True, check=True)
    assert main(["zsh"]) == 0
    assert "compdef _trainctl trainctl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shell", "prepare"),
    [
        (["bash", "--norc", "--noprofile", "-i"], ""),
        (["zsh", "-f", "-i"], "autoload -Uz compinit && compinit -u; "),
    ],
    ids=["bash", "zsh"],
)
def test_a_real_shell_completes(shell: list[str], prepare: str, tmp_path: Path) -> None:
    """An interactive shell on a terminal: the line after Tab is the command that runs."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    program = tmp_path / "trainctl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launcher "$@"\n')
    program.chmod(0o755)
    home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb", "PS1": "$ "}
    parent, child = pty.openpty()
    process = subprocess.Popen(
        shell,
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, **home, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    os.close(child)
    try:
        os.write(
            parent, f"{prepare}eval \"$(trainctl completion {shell[0]})\"; echo rea''dy\n".encode()
        )
        read_until(parent, b"ready")
        os.write(parent, b"trainctl check optimizer=sg\t--js\t| tr -d ' {}'; echo do''ne\n")
        shown = read_until(parent, b"done")
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert b'"ok":true' in shown


def read_until(terminal: int, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], 30)
        assert ready, shown
        shown += os.read(terminal, 4096)
    return shown
