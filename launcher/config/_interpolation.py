"""Resolve plain aliases `${a.b}`; refuse all other interpolations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.problems import NO_VALUE, leaves
from launcher.errors import Problem
from launcher.suggest import closest_keys, did_you_mean

# Resolvers compute, read the environment, and can be registered by any imported package: then a
# YAML file would mean different things on two machines.
_UNESCAPED = r"(?<!\\)(?:\\\\)*"  # an even number of backslashes escape each other
_ANY = re.compile(_UNESCAPED + r"\$\{")
_ALIAS = re.compile(_UNESCAPED + r"\$\{\s*(\.*[\w-]+(?:\.[\w-]+|\[\w+\])*)\s*\}")
_BEFORE = re.compile(r"(\\*)\$\{")
_MISSING = "???"
ONLY_ALIASES = "only plain aliases such as ${optimizer.lr} are allowed"
Path = tuple[str | int, ...]


def resolved(cfg: DictConfig, problems: list[Problem]) -> dict[str, Any]:
    """Return the values of a composed config, and add a problem for each unresolvable one."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    bad = {path: problem for path, value in _texts(raw) if (problem := _problem(path, value, raw))}
    if not bad:
        try:
            return _plain(OmegaConf.to_container(cfg, resolve=True))
        except (OmegaConfBaseException, RecursionError):
            bad = _unresolvable(raw)
    # None in their place, so that the values of all other keys are still checked.
    problems += bad.values()
    for path in bad:
        _put_none(raw, path)
    return _plain(OmegaConf.to_container(OmegaConf.create(raw), resolve=True))


def has_resolver(text: str) -> bool:
    """Return True if a text has an interpolation other than a plain alias."""
    return _ANY.search(_ALIAS.sub("", text)) is not None


def escaped(value: Any) -> Any:
    """Escape `${` in resolved values, so that they are not resolved again."""
    if isinstance(value, Mapping):
        return {key: escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [escaped(child) for child in value]
    return _BEFORE.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def _texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _texts(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _texts(child, (*path, index))
    elif isinstance(value, str) and ("${" in value or value == _MISSING):
        yield path, value


def _problem(path: Path, text: str, raw: Any) -> Problem | None:
    key = ".".join(map(str, path))
    if text == _MISSING:
        return Problem(key, f"{NO_VALUE} (???); give one with {key}=VALUE")
    if has_resolver(text):
        return Problem(key, f"{ONLY_ALIASES}, but it is {text!r}")
    known = [known for known, _ in leaves(raw)]
    for name in _ALIAS.findall(text):
        if not name.startswith(".") and "[" not in name and _lookup(raw, name.split(".")) is None:
            hint = did_you_mean(closest_keys(name, known))
            return Problem(key, f"refers to {name}, which does not exist{hint}")
    return None


def _lookup(raw: Any, parts: list[str]) -> Any:
    """Return a tuple with the value of a key; None if there is no such key."""
    for part in parts:
        if isinstance(raw, str) and "${" in raw:
            return (raw,)  # an alias of a mapping: only resolving it shows what it is
        if isinstance(raw, Mapping) and part in raw:
            raw = raw[part]
        elif isinstance(raw, list) and part.isdecimal() and int(part) < len(raw):
            raw = raw[int(part)]
        else:
            return None
    return (raw,)


def _unresolvable(raw: Any) -> dict[Path, Problem]:
    """Return the aliases that are circular or whose target does not exist."""
    bad = {}
    aliases = dict(_texts(raw))
    cfg = OmegaConf.create(raw)
    for path, text in aliases.items():
        node: Any = cfg
        try:
            for part in path:
                node = node[part]
        except (OmegaConfBaseException, RecursionError):
            bad[path] = _unresolvable_alias(path, text)
    # A mapping with an alias of itself fails only when the whole mapping is resolved.
    return bad or {path: _unresolvable_alias(path, text) for path, text in aliases.items()}


def _unresolvable_alias(path: Path, text: str) -> Problem:
    return Problem(
        ".".join(map(str, path)), f"the alias {text!r} refers to a missing key, or to itself"
    )


def _put_none(raw: Any, path: Path) -> None:
    *parents, last = path
    for part in parents:
        raw = raw[part]
    raw[last] = None


def _plain(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("a config is a mapping")
    return {str(key): child for key, child in value.items()}
