"""`trainctl config show`."""

from __future__ import annotations

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import print_json


def main(argv: list[str]) -> int:
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
