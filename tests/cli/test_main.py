"""The verb table, and the one place where an exception becomes text and an exit status."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import cli, errors
from launcher.cli import VERBS, config, main
from launcher.cli.config import VERBS as CONFIG_VERBS

HEAVY = {"torch", "transformers", "hydra", "omegaconf", "pydantic", "rich", "yaml", "deepspeed"}
LINES = [*([verb] for verb in VERBS), *(["config", verb] for verb in CONFIG_VERBS)]


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return] # text is set here
        [sys.executable, *arguments], text=True, capture_output=True, check=False, **options
    )


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `trainctl version` fail in a given way."""
    from launcher.cli import version

    def fails_with(error: BaseException) -> None:
        def fail(argv: list[str]) -> int:
            raise error

        monkeypatch.setattr(version, "main", fail)

    return fails_with


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_every_verb_has_help_with_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: trainctl {' '.join(words)}")
    assert "example:\n  " in shown
    assert main(["help", *words]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rnu"], "no verb 'rnu'; did you mean 'run'?"),
        (["xyzzy"], "it can be: run, resume"),
        (["cfg"], "write `trainctl config show`"),
        (["optimizer=sgd", "name=a b"], "did you mean `trainctl run optimizer=sgd 'name=a b'`?"),
        (["config", "shwo"], "no verb 'shwo' of config; did you mean 'show'?"),
        (["version", "--jsn"], "no option '--jsn'; did you mean '--json'?"),
        (["version", "now"], "unexpected word 'now'"),
        (["run", "-m", "--cfg", "hydra"], "leave -m out"),
        (["config", "explain"], "a word is missing"),
        (["check", "--config-dir"], "expected one argument"),
    ],
)
def test_wrong_words_exit_2_with_a_hint(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.err.startswith("trainctl: error: ")
    assert hint in output.err
    assert output.out == ""


def test_hyphens_and_underscores_are_alike(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for flag in ("--config-name=config", "--config_name=config"):
        assert main(["config", "show", flag]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize("kind", errors.TrainctlError.__subclasses__(), ids=lambda c: c.__name__)
def test_an_error_of_the_user_is_one_line_and_its_status(
    kind: type[errors.TrainctlError],
    verb: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "the reason")
    error.add_note("resume with: trainctl resume runs/a/1")
    if kind is errors.RankFailed:
        error = errors.RankFailed("the reason", 137)
        error.add_note("resume with: trainctl resume runs/a/1")
    verb(error)
    assert main(["version"]) == error.exit_status
    output = capsys.readouterr()
    assert output.err == "trainctl: error: the reason\nresume with: trainctl resume runs/a/1\n"


@pytest.mark.parametrize("words", [["--traceback", "version"], ["version", "--traceback"]])
def test_traceback_shows_where(
    words: list[str],
    verb: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb(errors.DataError("the reason"))
    assert main(words) == 13
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("trainctl: error: the reason\n")


def test_ctrl_c_exits_130(
    verb: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(KeyboardInterrupt())
    assert main(["version"]) == 130
    assert capsys.readouterr().err == "trainctl: interrupted\n"


def test_a_mistake_of_ours_prints_whole_and_exits_1() -> None:
    script = (
        "import sys; from launcher import cli; from launcher.cli import version\n"
        "def fail(argv): raise ZeroDivisionError('ours')\n"
        "version.main = fail\n"
        "sys.exit(cli.main(['version']))"
    )
    ended = python("-c", script)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "ZeroDivisionError: ours\nThis is a mistake in trainctl" in ended.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    shell = f"{sys.executable} -m launcher config schema | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", shell], text=True, capture_output=True, check=False)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["{", "141"]


def test_words_that_are_not_text_do_not_break_printing() -> None:
    ended = python("-m", "launcher", "run\udcff", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 2
    assert "no verb" in ended.stderr
    ended = python("-m", "launcher", "check", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0
    assert "\\xd7" in ended.stdout


def loaded(words: list[str]) -> set[str]:
    script = (
        "import contextlib, io, json, sys; from launcher.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): status = main(json.loads(sys.argv[1]))\n"
        "print(status, *{name.partition('.')[0] for name in sys.modules})"
    )
    ended = python("-c", script, json.dumps(words))
    status, *modules = ended.stdout.split()
    assert status == "0", ended.stderr
    return set(modules)


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], HEAVY | {"argparse"}),
        (["version"], HEAVY),
        (["completion", "bash"], HEAVY),
        (["completion", "query", "trainctl run optimizer="], {"torch", "hydra", "pydantic"}),
        (["completion", "query", "trainctl run optimizer.l"], {"torch", "hydra"}),
        (["recipes"], {"torch", "hydra", "pydantic"}),
        (["list", "optimizer"], {"torch", "hydra"}),
        (["list", "optimizer.adamw"], {"torch", "transformers"}),
        (["config", "show"], {"torch", "transformers"}),
        (["config", "schema"], {"torch", "transformers"}),
        (["config", "explain", "optimizer.lr"], {"torch", "transformers"}),
        (["config", "diff", "seed=1", "seed=1"], {"torch", "transformers"}),
        (["check"], {"torch", "transformers"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_verb_does_not_import(words: list[str], absent: set[str]) -> None:
    assert not loaded(words) & absent


def cpu_s(*arguments: str) -> float:
    """Least CPU time of a process over some tries: the machine may be busy."""
    spent = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def test_help_costs_less_than_twice_a_bare_argparse_script(tmp_path: Path) -> None:
    script = tmp_path / "bare.py"
    script.write_text("import argparse\nargparse.ArgumentParser().parse_args()\n")
    ratio = cpu_s("-m", "launcher", "--help") / cpu_s(str(script), "--help")
    print(f"trainctl --help over a bare argparse script: {ratio:.2f}")
    assert ratio < 2


def test_the_table_names_modules() -> None:
    folder = Path(cli.__file__).parent
    own_modules = [verb for verb in CONFIG_VERBS if not hasattr(config, f"_{verb}")]
    modules = {cli._MODULES.get(verb, verb) for verb in (*VERBS, *own_modules)}
    assert {path.stem for path in folder.glob("[!_]*.py")} == modules


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_only_on_a_terminal_that_wants_it(variables: dict[str, str]) -> None:
    import pty

    ours = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "TERM"}}
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "--help"],
        stdout=child,
        env={**ours, "TERM": "xterm", **variables},
    )
    process.wait()
    os.close(child)
    shown = os.read(parent, 65536).decode()
    os.close(parent)
    assert ("\x1b[" in shown) == (not variables)
    assert "\x1b[" not in python("-m", "launcher", "--help").stdout
