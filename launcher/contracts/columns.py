"""Columns that tasks read from records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.errors import DataError

if TYPE_CHECKING:
    from launcher.contracts.data import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column that a task reads.

    Attributes:
        key: Setting that names it, such as `task.columns.text`.
        name: Its name in the data.
        expects: Its values in words, for messages.
        accepts: Returns True for a valid value.
    """

    key: str
    name: str
    expects: str
    accepts: Callable[[Any], bool]

    def check(self, value: object, place: str) -> None:
        """Raise DataError if a value is not what the task reads."""
        if not self.accepts(value):
            found = "empty (null)" if value is None else f"{value!r:.60} ({_type_name(value)})"
            raise DataError(
                f"{place}: the column {self.name} must be {self.expects}, but is {found}"
            )

    def read(self, records: Records, index: int) -> Any:
        """Return the column's value in a record, checked."""
        value = records.record(index).get(self.name)
        if not self.accepts(value):
            self.check(value, records.describe(index))
        return value


def is_text(value: object) -> bool:
    """Return True for text."""
    return isinstance(value, str)


def _type_name(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list() | tuple():
            return "list"
        case dict():
            return "object"
        case _:
            return type(value).__name__
