"""`trainctl config diff`: the differences between two configs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import print_json, table

if TYPE_CHECKING:
    from launcher.config.diff import Difference


def main(argv: list[str]) -> int:
    """Compare two configs.

    Returns:
        0 when they are equal, 1 when they differ.
    """
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
    from launcher.config.diff import diff, side

    given = composition(flags, ())
    left, right = (
        side(word, given.config_name, given.config_dirs).model_dump(mode="json") for word in words
    )
    found = diff(left, right)
    if flags.json:
        print_json([_facts(each) for each in found])
    else:
        rows = [(each.key, _shown(each.left), _shown(each.right)) for each in found]
        print(table([("key", "A", "B"), *rows]) if rows else "equal")
    return 1 if found else 0


def _facts(difference: Difference) -> dict[str, Any]:
    """A side that does not have the key is left out."""
    from launcher.config.diff import ABSENT

    sides = {"left": difference.left, "right": difference.right}
    there = {name: value for name, value in sides.items() if value is not ABSENT}
    return {"key": difference.key, **there}


def _shown(value: Any) -> str:
    from launcher.config.diff import ABSENT

    return "-" if value is ABSENT else json.dumps(value, ensure_ascii=False)
