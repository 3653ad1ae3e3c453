"""Nonsense on the command line: an answer, an exit status, and never a traceback."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from launcher.cli import VERBS, main
from launcher.cli.config import VERBS as CONFIG_VERBS
from launcher.contracts import GROUPS

# These start processes; what they do with words before that, `check` does too.
SAFE = [verb for verb in VERBS if verb not in {"run", "resume", "join", "verify", "env"}]
FLAGS = [
    "--json",
    "--config-dir",
    "--config_dir=x",
    "-cn",
    "--config-name=",
    "--help",
    "--",
    "-m",
    "-",
    "--x=1",
]
KEYS = [
    "optimizer",
    "optimizer.lr",
    "seed",
    "model.",
    ".",
    "recipe",
    "hydra.run.dir",
    "a.b.c",
    "max_steps",
    "",
]
VALUES = [
    "",
    "1",
    "-1",
    "1e999",
    "nan",
    "null",
    "[",
    "{a:1}",
    "'",
    "a,b",
    "${x}",
    "range(1,3)",
    "\udcff",
    "\x00",
    "adamw",
    "é" * 50,
]
SIGNS = ["=", "==", "@", ":=", "=+", "~", "+", "++"]


def words(rng: random.Random) -> list[str]:
    verb = (
        [rng.choice(SAFE)]
        if rng.random() < 0.9
        else [rng.choice(["", "xyz", "--json", "a=b", "help"])]
    )
    if verb == ["config"] and rng.random() < 0.95:
        verb.append(rng.choice(list(CONFIG_VERBS)))
    return verb + [word(rng) for _ in range(rng.randrange(4))]


def word(rng: random.Random) -> str:
    match rng.randrange(4):
        case 0:
            return rng.choice(FLAGS)
        case 1:
            return rng.choice([*GROUPS, *KEYS, *SIGNS])
        case 2:
            return (
                rng.choice(["", "+", "~", "++"])
                + rng.choice(KEYS)
                + rng.choice(SIGNS)
                + rng.choice(VALUES)
            )
        case _:
            return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(8)))


@pytest.mark.parametrize("batch", range(10))
def test_nonsense_is_answered(
    batch: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        argv = words(random.Random(1000 * batch + number))
        try:
            status = main(argv)
        except BaseException as error:
            raise AssertionError(f"trainctl {argv} raised {error!r}") from error
        output = capsys.readouterr()
        # Status 1 has one meaning besides ours being wrong: `config diff` found a difference.
        assert status in {0, 2, 13, 14} or (status == 1 and argv[:2] == ["config", "diff"]), argv
        assert "Traceback" not in output.err, argv
        assert (status == 0) or output.err or output.out, argv
    assert not list(tmp_path.iterdir())
