"""Schedules inside a schedule."""

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from launcher.contracts import ConfigView, ScheduleError, SchedulerOption
from launcher.errors import ConfigError
from launcher.registry import option_class


def _option_class(kind: object) -> type[SchedulerOption]:
    if not isinstance(kind, str):
        raise ValueError("must have a `kind`, which names a schedule")  # noqa: TRY004 - likewise
    try:
        found = option_class("scheduler", kind)
    except ConfigError as error:
        # ConfigError is no ValueError, and pydantic collects only those.
        [problem] = error.problems
        raise ValueError(problem.message) from error
    assert issubclass(found, SchedulerOption), "the registry checks it"  # noqa: S101
    if found.uses_optimizer_lr:
        raise ValueError(
            f"{kind} leaves the rate to the optimizer for the whole run; it is no part of another "
            "schedule"
        )
    return found


def _validated(value: object) -> object:
    if isinstance(value, SchedulerOption):
        return value
    if not isinstance(value, dict):
        # Not a TypeError: pydantic collects ValueErrors only.
        raise ValueError(f"must be a mapping with a schedule's kind, but is {value!r}")  # noqa: TRY004
    # As JSON, like the config itself: in strict mode pydantic takes a list for a tuple only there.
    return _option_class(value.get("kind")).model_validate_json(json.dumps(value))


# SerializeAsAny, or pydantic would write the fields of the base class only.
AnySchedule = Annotated[SerializeAsAny[SchedulerOption], BeforeValidator(_validated)]


def with_location(error: ValueError, place: str) -> ScheduleError:
    if isinstance(error, ScheduleError):
        return ScheduleError(f"{place}.{error.field}", error.reason)
    return ScheduleError(place, f"does not fit: {error}")


def nested_watches(schedules: Mapping[str, SchedulerOption]) -> dict[str, str]:
    """Return the scores that nested schedules watch, each with the field that names it."""
    return {
        score: f"{place}.{field}"
        for place, schedule in schedules.items()
        for score, field in schedule.watches.items()
    }


def not_applicable_inside(
    schedules: Mapping[str, SchedulerOption], config: ConfigView
) -> dict[str, str]:
    """Return the fields of nested schedules that have no effect, each with its reason."""
    return {
        f"{place}.{field}": reason
        for place, schedule in schedules.items()
        for field, reason in schedule.not_applicable(config).items()
    }


def nested_memory(memory: Mapping[str, float], place: int) -> dict[str, float]:
    # Flat with a prefix for each schedule, because the memory of a train state is one mapping.
    prefix = f"{place}."
    return {key[len(prefix) :]: memory[key] for key in memory if key.startswith(prefix)}


def update_nested_memory(
    memory: Mapping[str, float], place: int, new: Mapping[str, float]
) -> Mapping[str, float]:
    # Keys that the nested schedule dropped (Greedy's reset) must not stay.
    prefix = f"{place}."
    others = {key: value for key, value in memory.items() if not key.startswith(prefix)}
    return others | {f"{prefix}{key}": value for key, value in new.items()}
