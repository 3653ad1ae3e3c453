"""Every number of a config has a lower and an upper bound."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from launcher.config.schema import RunConfig
from launcher.contracts import GROUPS
from launcher.registry import kinds, option_class

# Far beyond any sense, as integers and as decimals.
ABSURD = (1e300, -1e300, 10**40, -(10**40))
OPTIONS = [pytest.param(RunConfig, id="top level")]
OPTIONS += [
    pytest.param(option_class(group, kind), id=f"{group}={kind}")
    for group in GROUPS
    for kind in kinds(group)
]


def settings_of(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The class, and those of the settings nested in it."""
    yield root
    for name, field in root.model_fields.items():
        if root is not RunConfig or name not in GROUPS:
            yield from nested(field.annotation)


def nested(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from settings_of(annotation)
    for argument in typing.get_args(annotation):
        yield from nested(argument)


def accepted(annotation: Any, value: object) -> bool:
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def unbounded(root: type[BaseModel]) -> list[str]:
    """Fields that take an absurd number, alone or in a list."""
    found = []
    for settings in settings_of(root):
        for name, field in settings.model_fields.items():
            if root is RunConfig and name in GROUPS:
                continue
            annotation = Annotated[field.annotation, *field.metadata, ""]  # type: ignore[valid-type] # a value
            values = [shape for number in ABSURD for shape in (number, [number], [number, number])]
            if any(accepted(annotation, value) for value in values):
                found.append(f"{settings.__name__}.{name}")
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_every_number_is_bounded(option: type[BaseModel]) -> None:
    assert unbounded(option) == []


def test_a_number_without_bounds_is_found() -> None:
    class Loose(BaseModel):
        rate: float
        pair: tuple[int, int] | None
        name: str

    assert unbounded(Loose) == ["Loose.rate", "Loose.pair"]
