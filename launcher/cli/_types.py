"""Format a field's type and range for readers of YAML: `float > 0 | null`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_LISTS = (tuple, list, set, frozenset)


def type_text(field: FieldInfo) -> str:
    """Return the type and range of a field."""
    return _text(field.annotation, field.metadata)


def meaning(settings: type[BaseModel], name: str) -> str:
    """Return a field's meaning on one line."""
    return " ".join((settings.model_fields[name].description or "").split())


def choices(annotation: Any) -> Iterator[str]:
    """Yield the values in YAML of a type that has few."""
    # Nothing for numbers and text: then the shell completes paths.
    match get_origin(annotation):
        case origin if origin is Literal:
            yield from map(_value, get_args(annotation))
        case origin if origin in {Union, types.UnionType}:
            for member in get_args(annotation):
                yield from choices(member)
        case origin if origin is Annotated:
            yield from choices(get_args(annotation)[0])
        case _:
            yield from {bool: ("true", "false"), type(None): ("null",)}.get(annotation, ())


def _text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _text(arguments[0], [*metadata, *arguments[1:]])
    if origin in {Union, types.UnionType}:
        return " | ".join(_text(argument, metadata) for argument in arguments)
    if origin is Literal:
        return " | ".join(map(_value, arguments))
    if origin in _LISTS:
        inner = [_text(argument) for argument in arguments if argument is not Ellipsis]
        fixed = origin is tuple and Ellipsis not in arguments
        if fixed:
            return f"[{', '.join(inner)}]"
        each = inner[0] if inner else "anything"
        return f"list of ({each})" if " | " in each else f"list of {each}"
    return _name(origin or annotation, metadata)


def _name(plain: Any, metadata: Sequence[Any]) -> str:
    if plain is type(None):
        return "null"
    if plain in {int, float}:
        return f"{plain.__name__}{_range(metadata)}"
    if inspect.isclass(plain) and issubclass(plain, (BaseModel, dict)):
        return "mapping"
    # A type of a third-party option may be anything: an odd name is better than a failed list.
    return getattr(plain, "__name__", str(plain))


def _value(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value))


def _range(metadata: Sequence[Any]) -> str:
    """Return ` > 0` or ` in [0, 1)`; other constraints are named in errors."""
    low, high = None, None
    for entry in _flat(metadata):
        match entry:
            case at.Gt(gt=limit):
                low = (">", "(", _number(limit))
            case at.Ge(ge=limit):
                low = ("≥", "[", _number(limit))
            case at.Lt(lt=limit):
                high = ("<", ")", _number(limit))
            case at.Le(le=limit):
                high = ("≤", "]", _number(limit))
    if low and high:
        return f" in {low[1]}{low[2]}, {high[2]}{high[1]}"
    only = low or high
    return f" {only[0]} {only[2]}" if only else ""


def _number(limit: Any) -> str:
    # 2^63 is easier to read than its 19 digits.
    large = isinstance(limit, int) and limit >= 2**20 and limit.bit_count() == 1
    return f"2^{limit.bit_length() - 1}" if large else f"{limit:g}"


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            yield from _flat(entry.metadata)
        else:
            yield entry
