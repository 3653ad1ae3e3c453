"""`trainctl recipes`: complete, named experiments."""

from __future__ import annotations

from launcher.cli._arguments import Arguments, add_composition_flags
from launcher.cli._console import print_json, table
from launcher.cli._presets import presets, summary
from launcher.config.paths import shown
from launcher.suggest import closest, did_you_mean


def main(argv: list[str]) -> int:
    """List the recipes, or show the file of one."""
    arguments = Arguments(
        "recipes",
        "[show NAME]",
        "List the recipes (complete experiments, chosen by recipe=NAME), or show the file of one.",
        "trainctl recipes",
        "trainctl recipes show quick",
        json=True,
    )
    add_composition_flags(arguments)
    flags, words = arguments.words(argv, at_most=2)
    found = presets("recipe", flags.config_dir)
    if not words:
        rows = [(name, summary(path)) for name, path in found.items()]
        if flags.json:
            print_json([{"recipe": name, "doc": doc} for name, doc in rows])
        else:
            print(table(rows) if rows else "there are no recipes")
        return 0
    if words[0] != "show" or len(words) == 1:
        arguments.error(
            f"unexpected words {' '.join(words)!r}; `trainctl recipes show NAME` shows one"
        )
    name = words[1].removeprefix("recipe=")
    if name not in found:
        hint = did_you_mean(closest(name, found)) or f"; it can be: {', '.join(found)}"
        arguments.error(f"no recipe {name!r}{hint}")
    path = found[name]
    text = path.read_text("utf-8")
    if flags.json:
        print_json({"recipe": name, "file": str(path), "doc": summary(path), "text": text})
    else:
        # The path as a comment: the output is a valid recipe that can be saved and changed.
        print(f"# {shown(path)}\n{text}", end="")
    return 0
