"""`trainctl version`."""

from __future__ import annotations

from launcher import __version__
from launcher.cli._arguments import Arguments
from launcher.cli._console import print_json


def main(argv: list[str]) -> int:
    """Print the version of trainctl."""
    arguments = Arguments("version", "", "The version of trainctl.", "trainctl version", json=True)
    flags, _ = arguments.words(argv)
    if flags.json:
        print_json({"trainctl": __version__})
    else:
        print(f"trainctl {__version__}")
    return 0
