"""`trainctl list`: groups, their presets and kinds, and the fields of a kind."""

from __future__ import annotations

import inspect
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import Arguments, add_composition_flags
from launcher.cli._console import bold, print_json, table
from launcher.cli._presets import kind, presets, summary
from launcher.cli._types import meaning, type_text
from launcher.errors import ConfigError
from launcher.suggest import closest, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel


def main(argv: list[str]) -> int:
    """List the groups, the options of one, or the fields of a kind."""
    arguments = Arguments(
        "list",
        "[GROUP | GROUP.KIND | GROUP=PRESET]",
        "List the config groups; the presets and kinds of one; or the fields of a kind: type,\n"
        "range, meaning, and the value that the preset gives them.",
        "trainctl list optimizer",
        "trainctl list optimizer.adamw",
        json=True,
    )
    add_composition_flags(arguments)
    from launcher.contracts import GROUPS

    flags, words = arguments.words(argv, at_most=2)
    if len(words) > 1:
        write = f"`trainctl list {words[0]}.{words[1]}`" if words[0] in GROUPS else "one group"
        arguments.error(f"unexpected word {words[1]!r}; write {write}")
    word = words[0] if words else ""
    group, sign, name = word.partition("=") if "=" in word else word.partition(".")
    if not group:
        facts = _groups(flags)
    elif group not in GROUPS:
        of = [each for each in GROUPS if group in presets(each, flags.config_dir)]
        hint = did_you_mean(closest(group, GROUPS)) or f"; it can be: {', '.join(GROUPS)}"
        if of:
            hint = f"; write {' or '.join(f'`trainctl list {each}.{group}`' for each in of)}"
        arguments.error(f"no group {group!r}{hint}")
    elif not sign:
        facts = _options(group, flags)
    else:
        facts = _fields_of(group, name, flags, arguments)
    if flags.json:
        print_json(facts)
    else:
        text = _groups_text if not group else _fields_text if sign else _options_text
        print(text(facts))
    return 0


def _groups(flags: Namespace) -> dict[str, Any]:
    from launcher.config.schema import RunConfig
    from launcher.contracts import GROUPS

    return {
        group: {
            "doc": meaning(RunConfig, group),
            "presets": [*presets(group, flags.config_dir)],
        }
        for group in GROUPS
    }


def _groups_text(groups: Mapping[str, Any]) -> str:
    rows = [
        (group, facts["doc"].removesuffix("."), ", ".join(facts["presets"]))
        for group, facts in groups.items()
    ]
    return table(rows)


def _options(group: str, flags: Namespace) -> dict[str, Any]:
    from launcher import registry
    from launcher.config.schema import RunConfig

    found = presets(group, flags.config_dir)
    return {
        "group": group,
        "doc": meaning(RunConfig, group),
        "presets": [
            {
                "preset": name,
                "kind": kind(path),
                "doc": summary(path) or _doc(group, kind(path)),
                "extra": _extra(group, kind(path)),
            }
            for name, path in found.items()
        ],
        "kinds": [{"kind": name, "doc": _doc(group, name)} for name in registry.kinds(group)],
    }


def _options_text(facts: Mapping[str, Any]) -> str:
    group = facts["group"]
    rows = [
        (
            f"  {group}={each['preset']}",
            "" if each["kind"] == each["preset"] else f"kind {each['kind'] or 'unknown'}",
            each["doc"] + (f" (needs trainctl[{each['extra']}])" if each["extra"] else ""),
        )
        for each in facts["presets"]
    ]
    shown = {each["kind"] for each in facts["presets"]}
    rest = [each for each in facts["kinds"] if each["kind"] not in shown]
    rows += [(f"  {group}.{each['kind']}", "no preset", each["doc"]) for each in rest]
    return f"{bold(group)}: {facts['doc']}\n{table(rows)}"


def _fields_of(group: str, name: str, flags: Namespace, arguments: Arguments) -> dict[str, Any]:
    """Return the fields of a kind, or of a preset's kind, with the values of the preset."""
    from launcher import registry

    found = presets(group, flags.config_dir)
    kinds = {preset: kind(path) for preset, path in found.items()}
    names = {*kinds, *registry.kinds(group)}
    if name not in names:
        hint = did_you_mean(closest(name, names)) or f"; it can be: {', '.join(sorted(names))}"
        arguments.error(f"{group} has no kind or preset {name!r}{hint}")
    # A name may be a preset, a kind or both. The preset is preferred, as on the command line.
    of_kind = [preset for preset, its_kind in kinds.items() if its_kind == name]
    preset = name if name in found else next(iter(of_kind), None)
    chosen = (kinds.get(preset) if preset else None) or name
    option = registry.option_class(group, chosen)
    values = _values(group, preset, flags) if preset else {}
    return {
        "group": group,
        "kind": chosen,
        "class": f"{option.__module__}.{option.__qualname__}",
        "doc": registry.summary(group, chosen),
        "about": (inspect.getdoc(option) or "").partition("\n\n")[2],
        "preset": preset,
        "presets": [p for p, its_kind in kinds.items() if its_kind == chosen],
        "fields": [*_fields(option, values)],
    }


def _fields(settings: type[BaseModel], values: Any, prefix: str = "") -> Iterator[dict[str, Any]]:
    from pydantic import BaseModel

    given = values if isinstance(values, dict) else {}
    for name, field in settings.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            yield from _fields(below, given.get(name), f"{prefix}{name}.")
            continue
        # null is a value: only a missing key means that there is no preset.
        known = {"value": given[name]} if name in given else {}
        doc = meaning(settings, name)
        yield {"key": f"{prefix}{name}", "type": type_text(field), "doc": doc, **known}


def _fields_text(facts: Mapping[str, Any]) -> str:
    rows = [
        (
            f"  {field['key']}",
            field["type"],
            json.dumps(field["value"], ensure_ascii=False) if "value" in field else "",
            field["doc"],
        )
        for field in facts["fields"]
        if field["key"] != "kind"
    ]
    of = f" as {facts['group']}={facts['preset']} sets it" if facts["preset"] else ", no preset"
    others = [preset for preset in facts["presets"] if preset != facts["preset"]]
    return "\n".join(
        [
            f"{bold(facts['group'] + '.' + facts['kind'])}: {facts['doc']}",
            *([f"\n{facts['about']}\n"] if facts["about"] else []),
            f"{facts['class']},{of}" if not of.startswith(",") else f"{facts['class']}{of}",
            table([("  key", "type", "value", "meaning"), *rows]) if rows else "  no settings",
            *([f"other presets: {', '.join(others)}"] if others else []),
        ]
    )


def _values(group: str, preset: str, flags: Namespace) -> Any:
    """Return the preset's values; none if the config does not compose."""
    # Composed and not read from the file: presets extend others.
    from launcher.config.compose import compose_leniently

    composed, _ = compose_leniently([f"{group}={preset}"], flags.config_name, flags.config_dir)
    return composed.mapping.get(group) if composed else None


def _extra(group: str, name: str | None) -> str | None:
    from launcher import registry

    try:
        return registry.option_class(group, name or "").extra
    # A broken third-party package must not hide all other options.
    except ConfigError:
        return None


def _doc(group: str, name: str | None) -> str:
    from launcher import registry

    try:
        return registry.summary(group, name or "").removesuffix(".")
    except ConfigError:
        return ""
