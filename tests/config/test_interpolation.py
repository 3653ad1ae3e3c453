from __future__ import annotations

import random

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config._interpolation import escaped, resolved
from launcher.errors import Problem

PIECES = ["\\", "\\\\", "$", "{", "}", "${", "oc.env:SECRET", "b", ".", " ", "'", '"', "${b}"]


def text(draw: random.Random) -> str:
    return "".join(draw.choice([*PIECES, "${oc.env:SECRET}"]) for _ in range(draw.randint(1, 7)))


def test_no_text_reaches_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    draw = random.Random(0)
    for _ in range(3000):
        written = text(draw)
        try:
            cfg = OmegaConf.create({"a": written, "b": 1})
        except OmegaConfBaseException:
            continue  # not in the grammar: composing says so
        problems: list[Problem] = []
        assert "leaked" not in str(resolved(cfg, problems)), written


def test_escaped_text_comes_back_as_it_was() -> None:
    draw = random.Random(1)
    for _ in range(3000):
        written = text(draw)
        problems: list[Problem] = []
        mapping = {"a": [written], "b": 1}
        assert resolved(OmegaConf.create(escaped(mapping)), problems) == mapping
        assert problems == []


@pytest.mark.parametrize("backslashes", range(6))
def test_an_even_number_of_backslashes_escapes_nothing(backslashes: int) -> None:
    problems: list[Problem] = []
    cfg = OmegaConf.create({"a": "\\" * backslashes + "${oc.env:SECRET}"})
    resolved(cfg, problems)
    assert len(problems) == (backslashes % 2 == 0)
