"""Finds for each leaf of a preset two values whose difference can be seen: a witness.

A leaf is a key of conf/. The values come from its type; where no value that can be guessed shows
anything, a table has the other settings and the values with which it does.
"""

from __future__ import annotations

import copy
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ValidationError

from launcher import registry
from launcher.contracts import Option, Reads
from launcher.errors import TrainctlError
from tests.conftest import ROOT

CONF = ROOT / "conf"
# What presets take from elsewhere in the config.
INTERPOLATED = {"${max_steps}": 100}
CHECK = "check"
"""The observation that counts a refusal; for what only other machines can do."""
NUMBERS = (0.5, 2.0, 0.1, 0.9, 1e-3, 1.0, 10.0, 0.0)


@dataclass(frozen=True)
class Hint:
    """Changes that show the effect of a leaf that needs more than another value.

    Attributes:
        values: What to try in place of what the type suggests.
        where: Other leaves' values under which it has one; one that starts with a dot has the same
            parent.
        observe: Name of another observation than the group's first.
    """

    values: tuple[Any, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    observe: str = ""


Observe = Callable[[Any], Any]


def presets(group: str) -> list[str]:
    """Names of the packaged presets."""
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


@cache
def _read(path: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / path).read_text())
    return values


def preset(group: str, name: str) -> dict[str, Any]:
    """The values of a preset; `???` is left for a hint to fill."""
    values = dict(_read(f"{group}/{name}.yaml"))
    merged: dict[str, Any] = {}
    for part in values.pop("defaults", []):
        if isinstance(part, str) and part.startswith("_") and part != "_self_":
            merged |= _read(f"{group}/{part}.yaml")
        elif isinstance(part, str) and not part.startswith(("_", "/")):
            merged |= preset(group, part)
    merged |= values
    return {
        key: INTERPOLATED.get(value, value) if isinstance(value, str) else copy.deepcopy(value)
        for key, value in merged.items()
    }


def option_of(group: str, values: Mapping[str, Any]) -> Option:
    """The option with these values."""
    return registry.option_class(group, values["kind"]).model_validate_json(json.dumps(values))


def replaced(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with some leaves replaced."""
    new = copy.deepcopy(dict(values))
    for key, value in changes.items():
        *parents, last = key.split(".")
        node: Any = new
        for part in parents:
            node = node[int(part) if isinstance(node, list) else part]
        node[last] = value
    return new


def without_witness(
    make: Callable[[Mapping[str, Any]], BaseModel],
    values: Mapping[str, Any],
    observe: Mapping[str, Observe],
    hints: Mapping[str, Hint],
) -> list[str]:
    """Return the leaves for which no two values show a difference.

    Args:
        make: Makes the settings from values.
        values: The preset's. Only its keys are looked at.
        observe: What can be seen of an option, by name; "" is the first choice.
        hints: By `kind:leaf`, by leaf, or by its last part.
    """
    seen: dict[str, Any] = {}

    def observed(changed: Mapping[str, Any], name: str) -> Any:
        key = json.dumps([changed, name], sort_keys=True)
        if key not in seen:
            try:
                seen[key] = fingerprint(observe[name](make(changed)))
            except (ValidationError, TrainctlError, ValueError) as error:
                # That a value is refused shows something only where nothing else can.
                seen[key] = str(error) if name == CHECK else None
        return seen[key]

    def shown(leaf: str, hint: Hint) -> bool:
        parent = leaf.rpartition(".")[0]
        where = {f"{parent}{k}".lstrip(".") if k[0] == "." else k: v for k, v in hint.where.items()}
        base = replaced(values, where)
        settings = make(base)
        expected = observed(base, hint.observe)
        assert expected is not None, f"{leaf} cannot be observed under {hint}"
        return all(
            any(
                (found := observed(replaced(base, {leaf: value}), hint.observe)) is not None
                and found != expected
                for value in choices
            )
            for choices in ([hint.values] if hint.values else guesses(settings, leaf))
        )

    def hint(leaf: str) -> Hint:
        names = (f"{values.get('kind')}:{leaf}", leaf, leaf.rpartition(".")[2])
        return next((hints[name] for name in names if name in hints), Hint())

    found = (leaf for leaf in Reads(make(values)).leaves if leaf.partition(".")[0] in values)
    return [leaf for leaf in found if not shown(leaf, hint(leaf))]


def guesses(option: BaseModel, leaf: str) -> list[list[Any]]:
    """Other values of a leaf, by its type: one list, or one for each of several numbers."""
    owner: Any = option
    *parents, last = leaf.split(".")
    for part in parents:
        owner = owner[int(part)] if isinstance(owner, tuple) else getattr(owner, part)
    annotation = type(owner).model_fields[last].annotation
    value = getattr(owner, last)
    if isinstance(value, tuple) and value and all(isinstance(v, int | float) for v in value):
        return [
            [[*value[:i], other, *value[i + 1 :]] for other in _numbers(value[i])]
            for i in range(len(value))
        ]
    found: list[Any] = []
    for kind in _alternatives(annotation):
        if typing.get_origin(kind) is Literal:
            found += typing.get_args(kind)
        elif kind is bool:
            found += [True, False]
        elif kind is str and isinstance(value, str) and "%" in value:
            found += ["50%", 7]  # a length
        elif kind in {int, float} and not isinstance(value, str):
            found += _numbers(value)
        elif kind is types.NoneType:
            found.append(None)
    return [[other for other in dict.fromkeys(found) if other is not value and other != value]]


def _numbers(value: Any) -> list[float]:
    if value is None or isinstance(value, bool):
        return [1, 2, *NUMBERS]
    if isinstance(value, int):
        return [value + 1, 2 * value, max(1, value // 2), 1, 2, 3]
    return [2 * value, value / 2, (1 + value) / 2, *NUMBERS]


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types of a union, without what annotates them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    elif origin in {typing.Union, types.UnionType}:
        for each in typing.get_args(annotation):
            yield from _alternatives(each)
    else:
        yield annotation


def fingerprint(value: Any) -> Any:
    """A value that can be compared; tensors by their bits."""
    if isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), bits.numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: fingerprint(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [fingerprint(each) for each in value]
    return value if isinstance(value, str | bytes | int | float | None) else repr(value)
