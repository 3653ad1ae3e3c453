"""Record which settings are read by attribute, to find those that have no effect.

`Settings` reports each read here. `model_dump`, `==` and `repr` read no attribute and do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel


class Reads:
    """Record of the leaves of a config that were read.

    A leaf is a field that holds no settings, such as `optimizer.groups.frozen`; settings in a list
    are named by their index (`scheduler.parts.0.factor`).
    """

    def __init__(self, config: BaseModel) -> None:
        self._leaves: dict[str, None] = {}
        self._read: set[str] = set()
        # By identity, since equal settings may occur in several places; holding the settings keeps
        # the numbers from being given to others.
        self._places: dict[int, tuple[BaseModel, Mapping[str, str]]] = {}
        self._add(config, "")

    def note(self, settings: BaseModel, field: str) -> None:
        """Count a field as read, if it is one and belongs to the config."""
        place = self._places.get(id(settings))
        if place is not None and (key := place[1].get(field)) is not None:
            self._read.add(key)

    def follow(self, settings: BaseModel, copy: BaseModel, changed: Mapping[str, Any]) -> None:
        """Count reads of a copy as reads of the original, except those of changed fields."""
        # An option may build from a changed copy of itself (Muon's part for AdamW): without this
        # the fields that are read only there would count as unread.
        place = self._places.get(id(settings))
        if place is not None:
            keys = {field: key for field, key in place[1].items() if field not in changed}
            self._places[id(copy)] = (copy, keys)

    @property
    def leaves(self) -> list[str]:
        """All leaves, in the order of the config; no `kind` is one."""
        return list(self._leaves)

    def unread(self) -> list[str]:
        """Return the leaves that were not read, without those that only an event reads."""
        return [key for key in self._leaves if key not in self._read]

    def _add(self, settings: BaseModel, prefix: str) -> None:
        keys: dict[str, str] = {}
        # Most runs never reach the event, which does not make the setting useless.
        on_event: frozenset[str] = getattr(type(settings), "read_on_event", frozenset())
        self._places[id(settings)] = (settings, keys)
        # `__dict__`, because reading the attributes would record the reads.
        values = {**settings.__dict__, **(settings.__pydantic_extra__ or {})}
        for name, value in values.items():
            # The kind chose the class: without it there would be no settings.
            if name != "kind":
                key = keys[name] = f"{prefix}{name}"
                self._add_value(value, key)
                if name in on_event:
                    self._read.add(key)

    def _add_value(self, value: object, key: str) -> None:
        if isinstance(value, BaseModel):
            self._add(value, f"{key}.")
        elif isinstance(value, tuple | list) and any(isinstance(v, BaseModel) for v in value):
            # By index: the elements of a list may be equal, and of one class.
            for place, item in enumerate(value):
                self._add_value(item, f"{key}.{place}")
        else:
            self._leaves[key] = None


# The current record of reads. A module variable and no ContextVar, because threads of the run
# (checkpoint writer, display) read settings too and would start with an empty context.
active: Reads | None = None


@contextmanager
def recorded(config: BaseModel) -> Iterator[Reads]:
    """Record which leaves of a config are read within the context."""
    global active  # noqa: PLW0603 - see `active`
    before, active = active, Reads(config)
    try:
        yield active
    finally:
        active = before


@contextmanager
def unrecorded() -> Iterator[None]:
    """Record nothing within the context, because a check reads settings without using them."""
    global active  # noqa: PLW0603 - see `active`
    before, active = active, None
    try:
        yield
    finally:
        active = before
