"""Schedules inside a schedule: validated by their `kind`, remembered under a prefix."""

import json
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

import launcher.scheduler
from launcher.contracts import Misfit, SchedulerOption


def _option_class(kind: object) -> type[SchedulerOption]:
    """The class of a kind: a module of this package, or one that another package adds."""
    if kind == "adafactor":
        raise ValueError(
            "adafactor leaves the rate to the optimizer for the whole run; it is no part of "
            "another schedule"
        )
    modules = pkgutil.iter_modules(launcher.scheduler.__path__)
    packaged = [module.name for module in modules if not module.name.startswith("_")]
    if kind in packaged:
        return _only_option(import_module(f"launcher.scheduler.{kind}"))
    added = {
        entry_point.name.removeprefix("scheduler."): entry_point
        for entry_point in entry_points(group="trainctl.options")
        if entry_point.name.startswith("scheduler.")
    }
    if isinstance(kind, str) and kind in added:
        loaded: type[SchedulerOption] = added[kind].load()
        return loaded
    kinds = [name for name in (*packaged, *added) if name != "adafactor"]
    close = get_close_matches(str(kind), kinds, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it can be: {', '.join(kinds)}"
    raise ValueError(f"no such kind of schedule: {kind!r}; {hint}")


def _only_option(module: ModuleType) -> type[SchedulerOption]:
    """The one public option that a kind's module defines."""
    return next(
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, SchedulerOption)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    )


def _validated(value: object) -> object:
    """A mapping as the option that its `kind` names; its mistakes keep their places."""
    if isinstance(value, SchedulerOption):
        return value
    if not isinstance(value, dict):
        # Not a TypeError: pydantic collects ValueErrors only.
        raise ValueError(f"must be a mapping with a schedule's kind, but is {value!r}")  # noqa: TRY004
    return _option_class(value.get("kind")).model_validate_json(json.dumps(value))


AnySchedule = Annotated[SerializeAsAny[SchedulerOption], BeforeValidator(_validated)]
"""A whole schedule with its `kind` and every field of that kind."""


def misplaced(error: ValueError, place: str) -> Misfit:
    """What a schedule inside complains of, with its place in the whole."""
    if isinstance(error, Misfit):
        return Misfit(f"{place}.{error.field}", error.reason)
    return Misfit(place, f"does not fit: {error}")


def watched_inside(schedules: Mapping[str, SchedulerOption]) -> dict[str, str]:
    """Return the scores that nested schedules watch, each with the field that names it.

    Args:
        schedules: By their place in the whole.
    """
    return {
        score: f"{place}.{field}"
        for place, schedule in schedules.items()
        for score, field in schedule.watches.items()
    }


def recalled(memory: Mapping[str, float], place: int) -> dict[str, float]:
    """What the schedule at one place remembers."""
    prefix = f"{place}."
    return {key[len(prefix) :]: memory[key] for key in memory if key.startswith(prefix)}


def remembered(
    memory: Mapping[str, float], place: int, new: Mapping[str, float]
) -> Mapping[str, float]:
    """The memory of all with that of the schedule at one place replaced."""
    prefix = f"{place}."
    others = {key: value for key, value in memory.items() if not key.startswith(prefix)}
    return others | {f"{prefix}{key}": value for key, value in new.items()}
