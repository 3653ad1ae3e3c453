"""Origins of values: lines of YAML files, and words of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from launcher.config._hydra_settings import CODE_KEYS, code_key, no_code, refusal
from launcher.config._interpolation import ONLY_ALIASES, has_resolver
from launcher.config.paths import shown
from launcher.config.problems import leaves
from launcher.errors import Problem

COMMAND_LINE = "command line"
_SHOWN = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Origin:
    """Writer of a value.

    Attributes:
        key: Dotted key of a leaf.
        where: `file:line`, or `command line`.
        text: The line, or the word.
        is_preset: True for a packaged preset.
    """

    key: str
    where: str
    text: str
    is_preset: bool = False

    @override
    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(slots=True)
class Origins:
    """Every writer in the order of writing, and what no config may contain."""

    written: list[Origin] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)

    def add_file(self, file: ConfigFile, package: str) -> None:
        """Add the values of a YAML file that was merged at a dotted package."""
        # Parsed a second time, because Hydra's result has no line numbers.
        text = file.text()
        root = yaml.compose(text, Loader=_LOADER)
        if not isinstance(root, yaml.MappingNode):
            return
        lines = text.splitlines()

        def origin(key: str, node: yaml.Node, value: yaml.Node) -> Origin:
            quoted = " ".join(_between(lines, node.start_mark, value.end_mark).split())
            quoted = quoted if len(quoted) <= _SHOWN else f"{quoted[: _SHOWN - 1]}…"
            return Origin(key, f"{file.shown}:{node.start_mark.line + 1}", quoted, file.is_preset)

        named = list(_named_code(root, package))
        names_code = {key for _, key, _, _ in named}
        for key, node, value in _yaml_leaves(root, package):
            if key != (f"{package}.defaults" if package else "defaults"):
                self.written.append(origin(key, node, value))
                if key not in names_code and (problem := refusal(key, _plain(value))):
                    self.refused.append(Problem(key, problem, str(origin(key, node, value))))
            elif has_resolver(text[node.start_mark.index : value.end_mark.index]):
                self.refused.append(Problem(key, ONLY_ALIASES, str(origin(key, node, value))))
        for name, key, node, value in named:
            self.refused.append(Problem(key, no_code(name), str(origin(key, node, value))))

    def add_word(self, word: str, key: str, value: Any) -> None:
        """Add a word of the command line that sets a key, or all keys of a mapping."""
        nested = dict(leaves({key: value}) if isinstance(value, Mapping) else [(key, value)])
        self.written += [Origin(leaf, COMMAND_LINE, word) for leaf in nested]

    def refuses(self, word: str, key: str, value: Any) -> bool:
        """Return True and add a problem if no config may contain the value of a word."""
        named = next((part for part in key.split(".") if part in CODE_KEYS), None)
        named = named or code_key(value)
        problem = no_code(named) if named else refusal(key, value)
        if problem:
            self.refused.append(Problem(key, problem, f"{COMMAND_LINE}: {word}"))
        return problem is not None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A YAML file in a folder.

    Attributes:
        folder: Hydra's config source, e.g. `file:///home/me/conf`.
        config_path: Path in it without suffix, e.g. `optimizer/adamw`.
        provider: Name of the folder in Hydra's search path.
    """

    folder: str
    config_path: str
    provider: str = ""

    @property
    def _place(self) -> Path:
        scheme, _, folder = self.folder.partition("://")
        name = self.config_path.removesuffix(".yaml") + ".yaml"
        return Path(folder) / (name.removeprefix("recipe/") if scheme == "recipes" else name)

    @property
    def shown(self) -> str:
        """Name of the file for messages."""
        return shown(self._place)

    @property
    def is_preset(self) -> bool:
        """True if the file is a preset of this or another package, and no recipe."""
        packaged = self.provider == "main" or self.provider.startswith("extension ")
        return packaged and not self.config_path.startswith("recipe/")

    def is_named(self, name: str) -> bool:
        """Return True if a YAML parser's mark names this file."""
        return str(self._place) == name

    def text(self) -> str:
        """Return the text of the file."""
        return self._place.read_text(encoding="utf-8")


def _between(lines: Sequence[str], start: yaml.Mark, end: yaml.Mark) -> str:
    """Return the text between two marks, without a comment after it."""
    # The marks of an alias are those of its anchor, which may be above.
    if end.line <= start.line:
        line = lines[start.line]
        return line[start.column : end.column] if end.line == start.line else line.strip()
    last = lines[end.line][: end.column] if end.line < len(lines) else ""
    return "\n".join([lines[start.line][start.column :], *lines[start.line + 1 : end.line], last])


def _yaml_leaves(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield dotted key, key node and value node of all but non-empty mappings."""
    for key_node, value_node in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for each in merged:
                yield from _yaml_leaves(each, prefix)
            continue
        key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield from _yaml_leaves(value_node, key)
        else:
            yield key, key_node, value_node


def _named_code(node: yaml.Node, prefix: str) -> Iterator[tuple[str, str, yaml.Node, yaml.Node]]:
    """Yield last part, dotted key, key node and value node of every key that names code."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _named_code(item, f"{prefix}.{index}")
    elif isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
            if key_node.value in CODE_KEYS:
                yield key_node.value, key, key_node, value_node
            yield from _named_code(value_node, key)


def _plain(node: yaml.Node) -> Any:
    """Return the texts of a scalar or a sequence."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else {}
