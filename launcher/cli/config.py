"""`trainctl config VERB`: looks at resolved configs; starts nothing, needs no torch."""

from __future__ import annotations

from importlib import import_module

from launcher.cli._arguments import Arguments
from launcher.cli._console import table
from launcher.suggest import closest, did_you_mean

VERBS = {
    "show": "the resolved config",
    "explain": "a key's value, and everything that wrote it",
    "diff": "what differs between two configs",
    "schema": "JSON schema of the config, for editors",
    "params": "parameters and shapes of the model",
    "memory": "what the run will need of a device",
}


def main(argv: list[str]) -> int:
    """Pass the words on to one of the verbs."""
    verbs = table([(f"  {verb}", says) for verb, says in VERBS.items()])
    arguments = Arguments(
        "config",
        "VERB",
        f"Look at resolved configs.\n\n{verbs}",
        "trainctl config show optimizer=sgd",
        "trainctl config explain optimizer.lr",
    )
    if not argv or argv[0].startswith("-"):
        arguments.words(argv)
        arguments.print_help()
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        hint = did_you_mean(closest(verb, VERBS)) or f"; it can be: {', '.join(VERBS)}"
        arguments.error(f"no verb {verb!r} of config{hint}")
    status: int = import_module(f"launcher.cli.{verb}").main(rest)
    return status
