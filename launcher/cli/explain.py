"""`trainctl config explain`: a key's value, its type and meaning, and everything that wrote it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import bold, dim, print_json, table

if TYPE_CHECKING:
    from launcher.config.explain import Explanation


def main(argv: list[str]) -> int:
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
    key = key.rstrip("=.")
    from launcher.config.explain import explain

    found = explain(composition(flags, words).load(), key)
    if flags.json:
        print_json(_facts(found))
    else:
        print(_text(found))
    return 0


def _is_key(word: str) -> bool:
    """Return whether a word is no override; `optimizer.lr=` without a value is none."""
    return "=" not in word.removesuffix("=")


def _facts(found: Explanation) -> dict[str, Any]:
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


def _text(found: Explanation) -> str:
    facts = _facts(found)
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
