"""Find words of a command line that are no valid overrides, and correct them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config._provenance import COMMAND_LINE
from launcher.config.aliases import instead_of_key
from launcher.config.option_aliases import instead_of_option
from launcher.contracts import GROUPS
from launcher.errors import Problem

if TYPE_CHECKING:
    from launcher.config.compose import Loader

# A shell splits at spaces, editors replace hyphens and quotes by typographic ones, and other tools
# take `key value` or `key: value`. Hydra's parser reports a position in the word, from which few
# users find the cause.
_DASHES = "‐‑‒–—―−"
_QUOTES = {"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"}
_PLAIN = str.maketrans({**dict.fromkeys(_DASHES, "-"), "\u00a0": " ", **_QUOTES})
_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w./@-]*")
_VALUE = re.compile(r"[+-]?\.?\d[\w.+-]*%?|true|false|null|none", re.IGNORECASE)
_OPEN, _CLOSED = "([{", ")]}"


def readable(overrides: Sequence[str], loader: Loader) -> tuple[list[str], list[Problem]]:
    """Return the words that may be overrides, and a problem for each other one."""
    left: list[str] = []
    problems: list[Problem] = []
    words = list(overrides)
    while words:
        taken, advice = _meant(words, left, loader)
        if advice:
            typed = " ".join(words[:taken])
            key = typed if re.fullmatch(r"[\w.]+", typed) else ""
            message = advice if key else f"{typed!r} {advice}"
            problems.append(Problem(key, message, f"{COMMAND_LINE}: {typed}"))
        else:
            left += words[:taken]
        del words[:taken]
    return left, problems


def _meant(words: Sequence[str], before: Sequence[str], loader: Loader) -> tuple[int, str]:
    """Return the number of words that belong together, and a correction or ""."""
    word = words[0]
    plain = word.translate(_PLAIN)
    dashed = word.startswith(tuple(_DASHES))
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", word)
    if set(unquoted) & {*_DASHES, *_QUOTES}:
        flag = f"--{plain.lstrip('-')}" if dashed and word[2:] else plain
        return 1, f"has a typographic dash or quote; write {shlex.quote(flag)}"
    if taken := _split_by_spaces(words):
        joined = re.sub(r"\s*(:|=)\s*$|\s*(:|=)\s+|\s+=", "=", " ".join(words[:taken]), count=1)
        return taken, f"is split by spaces; write {shlex.quote(joined)}"
    if "=" in word or word.startswith("~") or not word:
        return 1, ""
    return _bare(words, before, loader)


def _split_by_spaces(words: Sequence[str]) -> int:
    """Return the number of words that a shell has split; 0 if the first is complete."""
    word, *rest = words
    following = rest[0] if rest else ""
    bare = bool(following) and "=" not in following and following[:1] not in "~+-"
    if _KEY.fullmatch(word.removesuffix(":").removesuffix("=")):
        if word.endswith(("=", ":")) and bare:
            return 2
        if following == "=" and len(rest) > 1:
            return 3
        if following.startswith("=") and len(following) > 1 and "=" not in word:
            return 2
    if "=" in word and _depth(word) > 0:
        for taken in range(2, len(words) + 1):
            if _depth(" ".join(words[:taken])) == 0:
                return taken
    return 0


def _depth(text: str) -> int:
    """Return the number of brackets that are open at the end, without those in quotes."""
    outside = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
    return sum((char in _OPEN) - (char in _CLOSED) for char in outside)


def _bare(words: Sequence[str], before: Sequence[str], loader: Loader) -> tuple[int, str]:
    """Return the number of words that belong to a word without a value, and advice."""
    word, *rest = words
    following = rest[0] if rest and "=" not in rest[0] else ""
    if following and (word in {*GROUPS, "recipe"} or word.partition(".")[0] in GROUPS):
        return 2, f"is split by a space; write {shlex.quote(f'{word}={following}')}"
    if _KEY.fullmatch(word) and _VALUE.fullmatch(following):
        advice = instead_of_key(word, following)
        return 2, advice or f"is split by a space; write {word}={following}"
    return 1, next(_advice(word, before[-1] if before else "", loader), "")


def _advice(word: str, before: str, loader: Loader) -> Iterator[str]:
    path = Path(word)
    is_run = False
    with suppress(OSError, ValueError):  # no file system could have such a path
        is_run = (path / "config.json").is_file()
    if is_run:
        yield f"is a run directory; write `trainctl resume {word}`"
    if choices := list(_options_named(word, loader)):
        yield f"has no group; write {' or '.join(choices)}"
    if path.suffix in {".yaml", ".yml"}:
        yield f"is a file; write --config-dir {path.parent} --config-name {path.stem}"
    if advice := instead_of_key(word, ""):
        yield f"is not a setting; {advice}"
    if "=" in before and not _is_key(word):
        joined = shlex.quote(f"{before} {word}")
        yield f"has no value; write {joined} if it belongs to the word before"


def _is_key(word: str) -> bool:
    return word.partition(".")[0] in GROUPS or "_" in word


def _options_named(word: str, loader: Loader) -> Iterator[str]:
    """Yield `group=option` for a name without a group, or for a path."""
    *folders, name = [part for part in re.split(r"[./:]", _without_suffix(word)) if part] or [""]
    all_groups = (*GROUPS, "recipe")
    groups = [group for group in all_groups if group in folders or f"{group}s" in folders]
    for group in groups or ([] if folders else all_groups):
        option = instead_of_option(group, name) or name
        if option in loader.options(group):
            yield f"{group}={option}"


def _without_suffix(word: str) -> str:
    return word.removesuffix(".yaml").removesuffix(".yml")
