"""Candidates of tab completion."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from launcher.cli import VERBS, main
from launcher.cli._presets import default_of, kind, presets, primary

# From folders and option classes: composing a config with Hydra takes a second, which is too long
# for a Tab.
_COMPOSING = {"run", "resume", "check", "verify", "lr"}
_COMPOSING |= {f"config {verb}" for verb in ("show", "explain", "diff", "params", "memory")}
_PREFIXES = "+~"


def candidates(line: str) -> list[str]:
    """Return words that continue the last word of a line; a complete one ends with a space."""
    # Not shlex: a quote that is still open is normal in a line that is being typed.
    *words, last = re.split(r"\s+", line.lstrip())
    found = {word for word in _possible(words[1:], last) if word.startswith(last)}
    if words[1:3] == ["config", "explain"] and not any(map(_is_key, words[3:])):
        found = {word.removesuffix("=") for word in found}
    return [word if word.endswith(("=", ".", "/")) else f"{word} " for word in sorted(found)]


def _is_key(word: str) -> bool:
    return "=" not in word and not word.startswith(("-", "~"))


def _possible(words: Sequence[str], last: str) -> Iterable[str]:
    """Return all words that the verb takes, whatever the last word begins with."""
    from launcher.cli.checkpoint import VERBS as CHECKPOINT_VERBS
    from launcher.cli.config import VERBS as CONFIG_VERBS

    if not words:
        return VERBS
    verb, *rest = words
    nested = {"config": CONFIG_VERBS, "checkpoint": CHECKPOINT_VERBS}
    if verb in nested:
        if not rest:
            return nested[verb]
        verb, *rest = f"{verb} {rest[0]}", *rest[1:]
    if last.startswith("-"):
        return _flags(verb)
    if rest and rest[-1] in {"--config-dir", "-cd"}:
        return ()  # the shell completes folders
    return [*_own_words(verb, rest, last), *(_overrides(rest, last) if verb in _COMPOSING else ())]


def _own_words(verb: str, rest: Sequence[str], last: str) -> Iterator[str]:
    match verb:
        case "completion":
            yield from ("bash", "zsh")
        case "recipes":
            yield from presets("recipe", _config_dirs(rest)) if rest == ["show"] else ["show"]
        case "list":
            yield from _kinds(last)
        case "resume" | "config diff" | "checkpoint list":
            yield from _runs()
        case "checkpoint verify" | "checkpoint show" | "checkpoint export" | "checkpoint convert":
            yield from _runs()
            yield from map(str, Path("runs").glob("*/*/checkpoints/step-*"))
    if verb == "config diff":
        yield from presets("recipe", _config_dirs(rest))


def _flags(verb: str) -> list[str]:
    """Return the flags in the verb's --help."""
    # From the help, so that they are defined only once.
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
        main([*verb.split(), "--help"])
    return [*re.findall(r"(?<=[\s,])--[a-z][a-z-]+", shown.getvalue()), "--traceback"]


def _runs() -> Iterator[str]:
    """Yield the run directories in `runs`, the default of run_root."""
    # Not the config's own run_root: finding it needs a composition.
    for config in Path("runs").glob("*/*/config.json"):
        yield str(config.parent)


def _kinds(last: str) -> Iterator[str]:
    from launcher.contracts import GROUPS
    from launcher.registry import kinds

    yield from GROUPS
    group = last.partition(".")[0]
    if group in GROUPS:
        yield from (f"{group}.{name}" for name in kinds(group))


def _overrides(rest: Sequence[str], last: str) -> Iterator[str]:
    """Yield groups and their presets, keys and their values."""
    bare = last.lstrip(_PREFIXES)
    prefix = last[: len(last) - len(bare)]
    key, equals, value = bare.partition("=")
    found = _values(key, value, rest) if equals else _keys(key, rest)
    yield from (f"{prefix}{word}" for word in found)


def _values(key: str, value: str, rest: Sequence[str]) -> Iterator[str]:
    before = value[: value.rfind(",") + 1]  # a sweep lists several
    options: Iterable[str] = () if "." in key else presets(key, _config_dirs(rest))
    yield from (f"{key}={before}{option}" for option in options or _choices(key, rest))


def _choices(key: str, rest: Sequence[str]) -> list[str]:
    """Return the values of a key that has few."""
    from launcher.cli._types import choices
    from launcher.config.fields import field_at
    from launcher.config.schema import RunConfig

    field = field_at(RunConfig, _kind_in(key.partition(".")[0], rest), key)
    return list(choices(field.annotation)) if field else []


def _keys(key: str, rest: Sequence[str]) -> Iterator[str]:
    from pydantic import BaseModel

    from launcher.config.fields import settings_at
    from launcher.config.schema import RunConfig
    from launcher.contracts import GROUPS

    *parents, _ = key.split(".")
    if not parents:
        yield from ("recipe=", *(f"{group}=" for group in GROUPS))
    settings = settings_at(RunConfig, _kind_in(parents[0], rest) if parents else {}, parents)
    for name, field in settings.model_fields.items() if settings else ():
        below = field.annotation
        group = not parents and name in GROUPS
        nested = group or (isinstance(below, type) and issubclass(below, BaseModel))
        yield ".".join([*parents, name]) + ("." if nested else "=")


def _kind_in(group: str, rest: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the kind that the words, their recipe, or config.yaml choose for a group."""
    # The same order as in Hydra: a word wins over a recipe, and that over config.yaml.
    config_dirs = _config_dirs(rest)
    name = _last_value(group, rest)
    if not name and (recipe := _last_value("recipe", rest)):
        path = presets("recipe", config_dirs).get(recipe)
        name = default_of(path, f"override /{group}") if path else None
    if not name:
        name = default_of(primary(config_dirs), group)
    path = presets(group, config_dirs).get(name or "")
    found = kind(path) if path else None
    return {group: {"kind": found}} if found else {}


def _last_value(key: str, words: Sequence[str]) -> str | None:
    # The last one, as in Hydra: a user appends a correction to an earlier command.
    values = (word.partition("=")[2] for word in words if word.startswith(f"{key}="))
    return next(reversed([*values]), None)


def _config_dirs(words: Sequence[str]) -> list[Path]:
    flags = {"--config-dir", "--config_dir", "-cd"}
    joined = (word.partition("=") for word in words)
    return [
        *(Path(folder) for flag, folder in pairwise(words) if flag in flags),
        *(Path(folder) for flag, _, folder in joined if flag in flags and folder),
    ]
