"""`trainctl config VERB`: show, explain and compare resolved configs.

Verbs that build the model are in modules of their own.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import bold, dim, print_json, table

if TYPE_CHECKING:
    from launcher.config.explain import Difference, Explanation

VERBS = {
    "show": "the resolved config",
    "explain": "a key's value, and everything that wrote it",
    "diff": "what differs between two configs",
    "schema": "JSON schema of the config, for editors",
    "params": "every parameter, its shape and its optimizer group",
    "memory": "memory of weights, gradients and optimizer state",
}


def main(argv: list[str]) -> int:
    """Run one of the verbs of `config`."""
    verbs = table([(f"  {verb}", says) for verb, says in VERBS.items()])
    arguments = Arguments(
        "config",
        "VERB",
        f"Look at resolved configs.\n\n{verbs}",
        "trainctl config show optimizer=sgd",
        "trainctl config explain optimizer.lr",
    )
    chosen = arguments.verb(argv, VERBS, _meant)
    if chosen is None:
        return 0
    verb, rest = chosen
    here = {"show": _show, "explain": _explain, "diff": _diff, "schema": _schema}
    if verb in here:
        return here[verb](rest)
    status: int = import_module(f"launcher.cli.{verb}").main(rest)
    return status


def _meant(word: str) -> str:
    if "=" in word or "." in word:
        return f"; write `trainctl config {'show' if '=' in word else 'explain'} {word}`"
    return ""


def _show(argv: list[str]) -> int:
    """Print the resolved config."""
    arguments = Arguments(
        "config show",
        "[group=option] [key=value]",
        "Print the resolved config, validated, as YAML that composes to itself.",
        "trainctl config show optimizer=sgd",
        json=True,
    )
    add_composition_flags(arguments)
    flags, overrides = arguments.split(argv)
    config = composition(flags, overrides).load().config
    values = config.model_dump(mode="json")
    if flags.json:
        print_json(values)
    else:
        from launcher.cli._yaml import to_yaml

        print(to_yaml(values), end="")
    return 0


def _explain(argv: list[str]) -> int:
    """Explain one key of the resolved config."""
    arguments = Arguments(
        "config explain",
        "KEY [group=option] [key=value]",
        "Print a key's meaning, its range, and the files and words that set it.",
        "trainctl config explain optimizer.lr optimizer=sgd",
        json=True,
    )
    add_composition_flags(arguments)
    flags, words = arguments.split(argv)
    key = next((word for word in words if not word.startswith("~") and _is_key(word)), None)
    if key is None:
        arguments.error("a word is missing: the KEY to explain, such as optimizer.lr")
    words.remove(key)
    # Tab completion ends keys with `=` and groups with `.`.
    key = key.rstrip("=.")
    from launcher.config.explain import explain

    found = explain(composition(flags, words).load(), key)
    if flags.json:
        print_json(_explanation_facts(found))
    else:
        print(_explanation_text(found))
    return 0


def _is_key(word: str) -> bool:
    """Return True if a word is no override; `optimizer.lr=` without a value is none."""
    return "=" not in word.removesuffix("=")


def _explanation_facts(found: Explanation) -> dict[str, Any]:
    from launcher.cli._types import type_text

    return {
        "key": found.key,
        "value": found.value,
        "type": type_text(found.field) if found.field else None,
        "doc": " ".join((found.field.description or "").split()) if found.field else None,
        "writers": [
            {"key": each.key, "where": each.where, "text": each.text} for each in found.writers
        ],
        "derived": found.derived,
        "resume": found.resume,
    }


def _explanation_text(found: Explanation) -> str:
    facts = _explanation_facts(found)
    # The last writer wins; the earlier ones are shown below it as overruled.
    *before, last = [f"{each.where}: {each.text}" for each in found.writers] or ["nothing"]
    if isinstance(found.value, dict):
        from launcher.cli._yaml import to_yaml

        head = f"{bold(found.key)}:\n" + to_yaml(found.value).rstrip().replace("\n", "\n  ")
        head = head.replace("\n", "\n  ", 1)
        writers = [("  written by", writer) for writer in (*before, last)]
    else:
        head = f"{bold(found.key)} = {json.dumps(found.value, ensure_ascii=False)}"
        writers = [("  set by", last), *(("  instead of", each) for each in reversed(before))]
    rows = [
        ("  type", facts["type"]),
        ("  meaning", facts["doc"]),
        *writers,
        ("  makes", found.derived),
        ("  on resume", found.resume),
    ]
    return f"{head}\n{table([(dim(label), text) for label, text in rows if text])}"


def _diff(argv: list[str]) -> int:
    """Compare two configs; return 0 if they are equal, 1 if they differ."""
    arguments = Arguments(
        "config diff",
        "A B",
        "Compare two configs: run directories, config.json files, names of recipes, or overrides\n"
        "quoted as one word. Exits with 0 when they are equal, 1 when they differ.",
        "trainctl config diff runs/default/20260101-120000-a1b2c3 'optimizer=sgd max_steps=100'",
        "trainctl config diff '' optimizer=sgd",
        json=True,
    )
    add_composition_flags(arguments)
    flags, words = arguments.words(argv, at_least=2, at_most=2)
    from launcher.config.explain import diff, side

    given = composition(flags, ())
    left, right = (
        side(word, given.config_name, given.config_dirs).model_dump(mode="json") for word in words
    )
    found = diff(left, right)
    if flags.json:
        print_json([difference_facts(each) for each in found])
    else:
        rows = [(each.key, _side_text(each.left), _side_text(each.right)) for each in found]
        print(table([("key", "A", "B"), *rows]) if rows else "equal")
    return 1 if found else 0


def difference_facts(difference: Difference) -> dict[str, Any]:
    """Return the key and the values of the configs that have it."""
    from launcher.config.explain import ABSENT

    # A key that is missing on one side is left out and not null, which is a value of many settings.
    sides = {"left": difference.left, "right": difference.right}
    there = {name: value for name, value in sides.items() if value is not ABSENT}
    return {"key": difference.key, **there}


def _side_text(value: Any) -> str:
    from launcher.config.explain import ABSENT

    return "-" if value is ABSENT else json.dumps(value, ensure_ascii=False)


def _schema(argv: list[str]) -> int:
    """Print the JSON schema of a resolved config, over all kinds of all groups."""
    arguments = Arguments(
        "config schema",
        "",
        "Print the JSON schema of a resolved config: all kinds, types, ranges and field docs.",
        "trainctl config schema > trainctl.schema.json",
        json=True,
    )
    arguments.words(argv)
    from launcher.config.schema import json_schema

    print_json(json_schema())
    return 0
