"""`trainctl config schema`."""

from __future__ import annotations

from launcher.cli._arguments import Arguments
from launcher.cli._console import print_json


def main(argv: list[str]) -> int:
    """Print the JSON schema of a resolved config, over all kinds of all groups."""
    arguments = Arguments(
        "config schema",
        "",
        "Print the JSON schema of a resolved config: all kinds, types, ranges and field docs.",
        "trainctl config schema > trainctl.schema.json",
        json=True,
    )
    arguments.words(argv)
    from launcher.config.json_schema import json_schema

    print_json(json_schema())
    return 0
