from __future__ import annotations

import pytest

from launcher.suggest import closest, closest_keys, did_you_mean, edit_distance


@pytest.mark.parametrize(
    ("a", "b", "slips"),
    [
        ("lr", "lr", 0),
        ("l", "lr", 1),
        ("betsa", "betas", 1),
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abcdef", "ghijkl", 5),
    ],
)
def test_distance_counts_slips_up_to_the_limit(a: str, b: str, slips: int) -> None:
    assert edit_distance(a, b, 4) == slips
    assert edit_distance(b, a, 4) == slips


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("l", ["lr"]),
        ("adamv", ["adam", "adamw"]),
        ("warmup", ["warmup_steps"]),
        ("x", []),
        ("zzzzzz", []),
    ],
)
def test_closest(word: str, found: list[str]) -> None:
    assert closest(word, ["lr", "adam", "adamw", "warmup_steps", "a"]) == found


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("optimizer.l", ["optimizer.lr"]),
        ("optimizr.lr", ["optimizer.lr"]),
        ("optimzer.rl", ["optimizer.lr"]),
        ("optimizerlr", ["optimizer.lr"]),
        ("lr", ["optimizer.lr"]),
        ("warmup_step", ["scheduler.warmup_steps"]),
        ("optimizer.zzz", []),
    ],
)
def test_closest_keys(key: str, found: list[str]) -> None:
    known = ["optimizer", "optimizer.lr", "optimizer.kind", "scheduler.warmup_steps", "seed"]
    assert closest_keys(key, known) == found


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([], ""),
        (["a"], "; did you mean 'a'?"),
        (["a", "b", "c"], "; did you mean 'a', 'b' or 'c'?"),
    ],
)
def test_did_you_mean(found: list[str], text: str) -> None:
    assert did_you_mean(found) == text
