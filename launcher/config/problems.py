"""Convert Pydantic's errors to problems: key, cause, fix."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from launcher.config.aliases import instead_of_key
from launcher.config.fields import field_at, other_kinds_with, settings_at
from launcher.contracts import GROUPS
from launcher.errors import Problem
from launcher.registry import kinds
from launcher.suggest import closest, did_you_mean

Location = tuple[str | int, ...]
_SHOWN = 60
_TOO_LARGE = 1e15  # for any whole number of a config
UNKNOWN = "no such setting"
NO_VALUE = "has no value yet"


def problems_in(error: ValidationError, root: type[BaseModel], mapping: Any) -> list[Problem]:
    """Return one problem per key, in the order of the schema."""
    # A misspelt key is unknown under one name and missing under the other: it is reported once.
    found: dict[Location, list[str]] = {}
    meant: set[Location] = set()
    missing: set[Location] = set()
    for details in error.errors(include_url=False):
        location, message, intended = _explained(details, root, mapping)
        found.setdefault(location, []).append(message)
        meant |= {(*location[:-1], word) for word in intended}
        if details["type"] == "missing":
            missing.add(location)
    # A file whose `defaults` is misspelt lacks everything that the list includes.
    bare = {location[:-1] for location in meant if location[-1] == "defaults"}
    reported = {location for location in missing if location[:-1] in bare} | meant
    return [
        Problem(".".join(map(str, location)), _joined(messages))
        for location, messages in found.items()
        if location not in reported
    ]


def merged(composing: Sequence[Problem], schema: Sequence[Problem]) -> list[Problem]:
    """Return the problems of composing and of the schema, one for each key."""
    # Composing leaves a null in place of a value that it cannot resolve, of which the schema
    # complains as well. For a misspelt key the schema's message is the better one.
    unknown = {p.key for p in schema if p.message.startswith(UNKNOWN)}
    kept = [p for p in composing if not (p.key in unknown and p.message.startswith(NO_VALUE))]
    reported = {p.key for p in kept}
    return [*kept, *(p for p in schema if p.key not in reported)]


def without_consequences(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems without those that another of them causes."""
    # Settings below an option that does not exist are compared with the packaged option.
    unchosen = {p.key for p in problems if p.key in GROUPS}
    wrong = {p.key for p in problems if not p.message.startswith(NO_VALUE)}
    return [
        p
        for p in problems
        if not (p.message.startswith(f"{UNKNOWN} of") and p.key.partition(".")[0] in unchosen)
        and not (p.message.startswith(NO_VALUE) and p.key in wrong)
    ]


def _explained(
    details: ErrorDetails, root: type[BaseModel], mapping: Any
) -> tuple[Location, str, Sequence[str]]:
    """Return location, message and, for an unknown key, the names that were probably meant."""
    location = _real(details["loc"], mapping)
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown(location, root, mapping)
    if kind == "no_kind":
        return _without_kind(location, details["input"])
    if kind == "option":
        return (*location, "kind"), details["msg"], ()
    if kind == "missing":
        return location, _missing(location), ()
    if kind == "json_invalid":
        return (), f"holds text that cannot be stored: {details['msg']}", ()
    field = field_at(root, mapping, ".".join(map(str, location)))
    # Pydantic does not say that null is allowed, which is what `-1` and `0` often mean.
    nullable = field is not None and type(None) in get_args(field.annotation)
    message = _wrong(details, location, nullable=nullable)
    if kind == "string_pattern_mismatch" and field is not None and field.examples:
        message = f"{message}; for example {' or '.join(map(str, field.examples))}"
    return location, message, ()


def _real(location: Location, mapping: Any) -> Location:
    """Return the location without the names of a union's branches, which pydantic adds."""
    parts: list[str | int] = []
    value = mapping
    for position, part in enumerate(location):
        if isinstance(value, Mapping) and (part in value or position == len(location) - 1):
            parts.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            parts.append(part)
            value = value[part] if part < len(value) else None
    return tuple(parts)


def _unknown(
    location: Location, root: type[BaseModel], mapping: Any
) -> tuple[Location, str, Sequence[str]]:
    *parents, last = location
    settings = settings_at(root, mapping, parents)
    known = list(settings.model_fields) if settings else []
    found = closest(str(last), [*known, "defaults"] if len(parents) <= 1 else known)
    if not found:
        hint = f"; there are: {', '.join(known)}" if known else ""
        if len(parents) == 1 and parents[0] in GROUPS:
            group, chosen = str(parents[0]), mapping[parents[0]].get("kind")
            hint = other_kinds_with(group, str(last), chosen) or hint
        return location, f"{UNKNOWN}{hint}", ()
    return location, f"{UNKNOWN}{did_you_mean(found)}", found


def _without_kind(location: Location, values: Any) -> tuple[Location, str, Sequence[str]]:
    group = str(location[0]) if location else ""
    for meant in ("kind", "defaults"):
        for key in values:
            if meant in closest(str(key), [meant]) and key != meant:
                message = f"{UNKNOWN}{did_you_mean([meant])}"
                return (*location, key), message, [meant]
    return (
        (*location, "kind"),
        f"must name the kind of {group}; it can be: {', '.join(kinds(group))}",
        (),
    )


def _missing(location: Location) -> str:
    key = ".".join(map(str, location))
    if location and isinstance(location[-1], int):
        return f"has no value; {key.rpartition('.')[0]} needs at least {location[-1] + 1} values"
    if key in GROUPS:
        return f"has no option; choose one with {key}=OPTION ({', '.join(kinds(key))})"
    return f"has no value; write it in the YAML file or add +{key}=VALUE"


def _wrong(details: ErrorDetails, location: Location, *, nullable: bool) -> str:
    message = details["msg"]
    value = details["input"]
    if message.startswith("Value error, "):
        return message.removeprefix("Value error, ")
    if should := re.match(r"(?:Input|String|List|Tuple|Dictionary) should ", message):
        message = f"must {message[should.end() :]}"
    else:
        message = message[:1].lower() + message[1:]
    meant = _meant(value, details["type"], location, nullable=nullable)
    hint = f"; write {meant}" if meant else ""
    if details["type"] == "literal_error" and isinstance(value, str):
        key = ".".join(map(str, location))
        advice = instead_of_key(str(location[-1]), value)
        choices = re.findall(r"'([^']*)'", message)
        is_valid = advice in {f"write {key}={choice}" for choice in choices}
        hint = f"; {advice}" if is_valid else did_you_mean(closest(value, choices))
    return f"{message}, but is {_shown(value)}{hint}"


def _meant(value: Any, wrong: str, location: Location, *, nullable: bool) -> str:
    """Return the correction of a value that other tools accept, or ""."""
    if wrong == "int_type" and isinstance(value, float) and value.is_integer():
        return f"{value:.0f}" if abs(value) < _TOO_LARGE else ""
    if wrong.startswith("greater_than") and nullable and value in (0, -1):
        return "null for none"
    text = str(value).strip().lower()
    if wrong in {"bool_type", "bool_parsing"}:
        words = {"true": ("yes", "on", "1", "true"), "false": ("no", "off", "0", "false")}
        return next((word for word, others in words.items() if text in others), "")
    if text in {"none", "nil", "off", "-"} and nullable:
        return "null"
    group = str(location[0]) if location else ""
    if group in GROUPS and text in kinds(group):
        return f"{group}={text}"
    is_text = isinstance(value, str) and wrong in {"int_type", "float_type"}
    # The unit that the key names already.
    unit = {"minutes": "m", "s": "s"}.get(str(location[-1]).rpartition("_")[2] if location else "")
    return _number(text.removesuffix(unit or "")) if is_text else ""


def _number(text: str) -> str:
    """Return a number with a unit or a decimal comma in YAML's notation, or ""."""
    # `1k`, `2M` and `0,5` are suggested and not accepted: a wrong guess would change the run.
    match = re.fullmatch(r"(-?\d*[.,]?\d+(?:e-?\d+)?)\s*([kmbg%]?)", text.strip("=\"' "))
    if match is None:
        return ""
    number = match[1].replace(",", ".")
    factor = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "%": 0.01}.get(match[2])
    return number if factor is None else f"{float(number) * factor:.10g}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _joined(messages: Sequence[str]) -> str:
    """Return one message for all branches of a union (`must be an integer or a number`)."""
    unique = list(dict.fromkeys(messages))
    if len(unique) == 1:
        return unique[0]
    heads = [message.partition(", but is ") for message in unique]
    if len({tail for _, _, tail in heads}) == 1 and all(
        h.startswith("must be ") for h, _, _ in heads
    ):
        choices = " or ".join(head.removeprefix("must be ") for head, _, _ in heads)
        return f"must be {choices}, but is {heads[0][2]}"
    return "; ".join(unique)


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of all but non-empty mappings."""
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value
