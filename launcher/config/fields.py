"""Find the field of a dotted key in the schema."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launcher.contracts import GROUPS
from launcher.errors import ConfigError
from launcher.registry import kinds, option_class

_SHOWN = 5


def settings_at(
    root: type[BaseModel], mapping: Any, parts: Sequence[str | int]
) -> type[BaseModel] | None:
    """Return the class that validates the values below a key, if any.

    Args:
        root: Class of the whole config.
        mapping: Values of the config; a group's `kind` decides its class.
        parts: The key, part by part.
    """
    current: Any = root
    for depth, part in enumerate(parts):
        if depth == 0 and part in GROUPS:
            current = _option_class(str(part), mapping)
        elif _is_settings(current):
            field = current.model_fields.get(part)
            current = field.annotation if field else None
        settings = next(_settings_in(current), None)
        current = settings or current
    return current if _is_settings(current) else None


def field_at(root: type[BaseModel], mapping: Any, key: str) -> FieldInfo | None:
    """Return the field of a dotted key; None inside of a free mapping or a list."""
    *parents, last = key.split(".")
    settings = settings_at(root, mapping, parents)
    return settings.model_fields.get(last) if settings else None


def annotations_of(root: type[BaseModel], key: str) -> str:
    """Return the types that a key has in any kind of its group, as text; "" for an unknown key."""
    group, _, field = key.partition(".")
    owners = [option_class(group, kind) for kind in kinds(group)] if group in GROUPS else [root]
    found = [owner.model_fields.get(field or group) for owner in owners]
    return " ".join(str(each.annotation) for each in found if each is not None)


def other_kinds_with(group: str, field: str, kind: object) -> str:
    """Return the message that other kinds of a group have a field; "" if none has."""
    others = [
        f"{group}={other}"
        for other in kinds(group)
        if other != kind and field in option_class(group, other).model_fields
    ]
    if not others:
        return ""
    if len(others) > _SHOWN:
        others = [*others[:_SHOWN], f"{len(others) - _SHOWN} more"]
    named = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
    return f" of {group}={kind}; {named} {'have' if len(others) > 1 else 'has'} it"


def _option_class(group: str, mapping: Any) -> type[BaseModel] | None:
    values = mapping.get(group) if isinstance(mapping, Mapping) else None
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str):
        return None
    try:
        return option_class(group, kind)
    except ConfigError:
        return None


def _is_settings(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def _settings_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes in an annotation such as `tuple[Rule, ...] | None`."""
    if _is_settings(annotation):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _settings_in(argument)
