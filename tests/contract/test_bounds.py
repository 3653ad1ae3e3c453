"""Every number of a config has a lower and an upper bound."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

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


def takes_any(name: str, field: FieldInfo) -> bool:
    """True if a field takes an absurd number, alone or in a list."""
    fields: dict[str, Any] = {name: (field.annotation, field)}
    one = create_model("One", __config__=ConfigDict(strict=True), **fields)
    for number in ABSURD:
        for value in (number, [number], [number, number]):
            try:
                one.model_validate_json(json.dumps({name: value}))
            except ValidationError:
                continue
            return True
    return False


def unbounded(root: type[BaseModel]) -> list[str]:
    """Names of the fields without bounds."""
    return [
        f"{settings.__name__}.{name}"
        for settings in settings_of(root)
        for name, field in settings.model_fields.items()
        if not (settings is RunConfig and name in GROUPS) and takes_any(name, field)
    ]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_number_is_bounded(option: type[BaseModel]) -> None:
    assert unbounded(option) == []


def test_a_number_without_bounds_is_found() -> None:
    class Loose(BaseModel):
        rate: float
        pair: tuple[int, int] | None
        name: str

    assert unbounded(Loose) == ["Loose.rate", "Loose.pair"]
