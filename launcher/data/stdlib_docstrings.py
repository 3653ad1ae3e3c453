"""Docstrings of the standard library's functions, as questions and answers."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field
from typing_extensions import override

from launcher.contracts import DataOption, DataSplits, Records
from launcher.data._files import is_held_out
from launcher.data._stdlib import names, no_source, root


class StandardLibraryDocstrings(DataOption):
    """Functions and classes of the standard library: what does it do? The docstring's first line.

    A built-in set for chats (column `messages`), for prompts (`prompt`, `completion`) and for
    summaries (`signature`, `completion`): it needs no network, and is the same on every machine
    with the same Python version.
    """

    longest: int = Field(ge=10, le=10_000)
    """Most characters of an answer; longer ones are left out."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Share of the functions that are held out, by a hash of their place."""

    @override
    def preflight(self) -> None:
        if not any(root().glob("*.py")):
            raise no_source()

    @override
    def peek(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield "stdlib_docstrings", record("f", "m", "f()", "Do.")

    @override
    def build(self) -> DataSplits:
        parts: dict[bool, list[tuple[str, Mapping[str, Any]]]] = {True: [], False: []}
        folder = root()
        for name in sorted(names(folder)):
            for place, found in _documented(folder / name, name):
                if len(found["completion"]) <= self.longest:
                    parts[is_held_out(place, self.validation_fraction)].append((place, found))
        if not parts[True] or not parts[False]:
            raise no_source()
        return DataSplits(Docstrings(parts[False]), Docstrings(parts[True]))


class Docstrings(Records):
    """Records with their places."""

    columns = ("messages", "prompt", "completion", "signature")

    def __init__(self, rows: list[tuple[str, Mapping[str, Any]]]) -> None:
        self._rows = rows
        hashed = xxhash.xxh3_128()
        for place, row in rows:
            hashed.update(f"{place}\0{row['prompt']}\0{row['completion']}\0".encode())
        self.fingerprint = hashed.hexdigest()

    @override
    def __len__(self) -> int:
        return len(self._rows)

    @override
    def record(self, index: int) -> Mapping[str, Any]:
        return self._rows[index][1]

    @override
    def describe(self, index: int) -> str:
        return self._rows[index][0]


def record(name: str, module: str, signature: str, answer: str) -> Mapping[str, Any]:
    """Return a record of one function."""
    prompt = f"What does {name} of {module} do?"
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {
        "messages": messages,
        "prompt": prompt,
        "completion": answer,
        "signature": signature,
    }


def _documented(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            answer = (ast.get_docstring(node) or "").partition("\n")[0].strip()
            if answer:
                bases = node.bases if isinstance(node, ast.ClassDef) else []
                inner = ", ".join(map(ast.unparse, bases))
                inside = inner if isinstance(node, ast.ClassDef) else ast.unparse(node.args)
                found = record(node.name, module, f"{node.name}({inside})", answer)
                yield f"{name}:{node.lineno}", found
