"""A key without one of its letters is answered with the key that was meant.

Without the first, the middle and the last letter; slow tests leave out each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.config.compose import compose
from launcher.config.load import LoadedConfig, load_config
from launcher.config.paths import CONF, RECIPES
from launcher.config.schema import RunConfig
from launcher.contracts import GROUPS
from launcher.errors import ConfigError, Problem

PRESETS = {group: sorted(path for path in (CONF / group).glob("[!_]*.yaml")) for group in GROUPS}
FILES = ("csv", "jsonl", "parquet", "text", "tsv")
NEEDED = {
    "hf": ["model.path=/nowhere", "optimizer.lr=1e-5"],
    "arrow": ["data.path=/nowhere"],
    **{name: ["data.files=/nowhere/*.txt"] for name in FILES},
    "text_finetune": ["model.path=/nowhere", "data.files=/nowhere/*.txt"],
    "lora_finetune": ["model.path=/nowhere", "data.files=/nowhere/*.txt"],
}


def keys(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{key}.")


def deletions(word: str, *, every: bool = True) -> list[str]:
    """The word with one letter left out, in every way or in three; nothing of a single letter."""
    places = range(len(word)) if every else (0, len(word) // 2, len(word) - 1)
    return sorted({word[:i] + word[i + 1 :] for i in places} - {""})


def problems(words: list[str], *folders: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_config(words, config_dirs=folders)
    return list(caught.value.problems)


def names(problem: Problem, meant: str) -> bool:
    """Return True if a problem's advice names a key."""
    _, found, advice = problem.message.partition("did you mean ")
    return bool(found) and repr(meant) in advice


EVERY = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["three", "every"]
)


@EVERY
def test_as_overrides(packaged: LoadedConfig, every: bool) -> None:
    known = set(keys(packaged.composed.mapping))
    wanted = {}
    for key in known:
        parts = key.split(".")
        for place, part in enumerate(parts):
            for typo in deletions(part, every=every):
                mutated = ".".join([*parts[:place], typo, *parts[place + 1 :]])
                if mutated not in known:
                    wanted[mutated] = key
    assert len(wanted) > (1000 if every else 300)
    words = sorted(wanted)
    for start in range(0, len(words), 400):
        batch = words[start : start + 400]
        found = {p.key: p for p in problems([f"{word}=1" for word in batch])}
        assert found.keys() == set(batch)
        for word in batch:
            assert names(found[word], wanted[word]), found[word]
            assert found[word].origin == f"command line: {word}=1"


@pytest.mark.parametrize("group", [*GROUPS, "recipe"])
def test_group_names_and_options(group: str) -> None:
    folder = RECIPES if group == "recipe" else CONF / group
    options = {path.stem for path in folder.glob("[!_]*.yaml")}
    names_typed = [f"{prefix}{typo}=x" for typo in deletions(group) for prefix in ("", "~")]
    typos = {typo for option in options for typo in deletions(option)} - options
    found = {p.origin: p for p in problems([*names_typed, *(f"{group}={typo}" for typo in typos)])}
    for word in names_typed:
        assert names(found[f"command line: {word}"], group)
    for typo in typos:
        problem = found[f"command line: {group}={typo}"]
        meant = [option for option in options if typo in deletions(option)]
        assert all(names(problem, option) for option in meant[:1]), problem


@EVERY
def test_in_the_values_of_every_preset(every: bool) -> None:
    """As the schema sees them; `test_in_files` goes the whole way."""
    for row in zip_longest(*PRESETS.values()):
        chosen = {group: path.stem for group, path in zip(GROUPS, row, strict=True) if path}
        words = [word for option in chosen.values() for word in NEEDED.get(option, [])]
        mapping = compose([*(f"{g}={option}" for g, option in chosen.items()), *words]).mapping
        for group, option in chosen.items():
            for key in keys(mapping[group]):
                *parents, last = key.split(".")
                for typo in deletions(last, every=every):
                    mutated = replaced(mapping, [group, *parents], last, typo)
                    if mutated is None:
                        continue
                    with pytest.raises(ConfigError) as caught:
                        RunConfig.from_mapping(mutated)
                    [problem] = caught.value.problems
                    assert problem.key == ".".join([group, *parents, typo])
                    assert names(problem, last), (option, problem)


def replaced(mapping: Any, parents: list[str], old: str, new: str) -> Any:
    """The mapping with one key renamed; None if the new name is taken."""
    if parents:
        first, *rest = parents
        inner = replaced(mapping[first], rest, old, new)
        return None if inner is None else {**mapping, first: inner}
    if new in mapping:
        return None
    return {new if key == old else key: value for key, value in mapping.items()}


def key_nodes(path: Path) -> list[yaml.ScalarNode]:
    """The keys of a file, without those of its defaults list and those of mappings.

    A misspelt mapping is reported where its last key is written.
    """

    def walk(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == "defaults" or not isinstance(value, yaml.MappingNode):
                    yield key
                else:
                    yield from walk(value)

    root = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    return list(walk(root)) if root else []


def with_typos(path: Path, spans: list[tuple[int, int, int]]) -> str:
    """The file's text without some letters, each given by line, column and place in the word."""
    lines = path.read_text("utf-8").splitlines()
    for line, column, place in sorted(spans, reverse=True):
        text = lines[line]
        lines[line] = text[: column + place] + text[column + place + 1 :]
    return "\n".join(lines) + "\n"


def write(user_dir: Path, path: Path, text: str) -> Path:
    recipe = path.is_relative_to(RECIPES)
    place = Path("recipe") / path.name if recipe else path.relative_to(CONF)
    file = user_dir / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def misspelt(path: Path, keys: set[str], place: float) -> tuple[str, dict[int, tuple[str, str]]]:
    """The text of a file with one letter left out of each of some keys; typo and key by line."""
    spans = []
    wanted: dict[int, tuple[str, str]] = {}
    nodes = key_nodes(path)
    for node in nodes:
        letter = int(place * (len(node.value) - 1))
        typo = node.value[:letter] + node.value[letter + 1 :]
        taken = {other.value for other in nodes} | {other for other, _ in wanted.values()} | {""}
        if node.value in keys and typo not in taken:
            spans.append((node.start_mark.line, node.start_mark.column, letter))
            wanted[node.start_mark.line + 1] = (typo, node.value)
    return with_typos(path, spans), wanted


def check_files(user_dir: Path, paths: list[Path], place: float, only: str | None = None) -> None:
    """Misspell keys of one file of each group at once: each has one problem, with file and line."""
    words = [word for path in paths for word in NEEDED.get(path.stem, [])]
    expected: dict[str, tuple[str, str]] = {}
    for path in paths:
        group = "recipe" if path.is_relative_to(RECIPES) else path.parent.name
        if path != CONF / "config.yaml":
            words.append(f"{group}={path.stem}")
        values = {node.value for node in key_nodes(path)}
        text, wanted = misspelt(
            path, {only} if only else values - {"kind", "defaults", *GROUPS}, place
        )
        file = write(user_dir, path, text)
        expected |= {f"{file}:{line}": pair for line, pair in wanted.items()}
    if not expected:
        return
    found = {":".join(p.origin.split(":")[:2]): p for p in problems(words, user_dir)}
    reported = {place: p for place, p in found.items() if not place.startswith("command line")}
    for place_in_file, (typo, meant) in expected.items():
        if place_in_file in reported:
            assert names(reported[place_in_file], meant), reported[place_in_file]
            assert reported[place_in_file].key.rpartition(".")[2] == typo
    # Keys inside a misspelt mapping are reported with the mapping. A recipe without its defaults
    # sets keys that the default kinds do not have, which are reported too.
    if only != "defaults":
        assert reported.keys() <= expected.keys()
    assert {place.rpartition(":")[0] for place in reported} == {
        place.rpartition(":")[0] for place in expected
    }
    for path in paths:
        if path != CONF / "config.yaml":
            next(user_dir.glob(f"*/{path.name}")).unlink()


def rows() -> list[list[Path]]:
    return [[path for path in row if path] for row in zip_longest(*PRESETS.values())]


@pytest.mark.parametrize(
    "place",
    [
        0.5,
        pytest.param(0.0, marks=pytest.mark.slow),
        pytest.param(0.25, marks=pytest.mark.slow),
        pytest.param(0.75, marks=pytest.mark.slow),
        pytest.param(1.0, marks=pytest.mark.slow),
    ],
)
def test_in_files(user_dir: Path, place: float) -> None:
    for row in rows():
        check_files(user_dir, row, place)
    for path in RECIPES.glob("*.yaml"):
        check_files(user_dir, [path], place)
    check_files(user_dir, [CONF / "config.yaml"], place)


@EVERY
@pytest.mark.parametrize("key", ["kind", "defaults"])
def test_of_kind_and_defaults_in_files(user_dir: Path, key: str, every: bool) -> None:
    for row in rows() if every else rows()[::4]:
        check_files(user_dir, row, 0.5, key)
    for place in range(len(key)):
        check_files(user_dir, rows()[0], place / len(key), key)
    if key == "defaults":
        for path in RECIPES.glob("*.yaml"):
            check_files(user_dir, [path], 0.5, key)


def test_of_the_word_defaults_in_the_table_of_contents(user_dir: Path) -> None:
    for typo in deletions("defaults"):
        write(
            user_dir,
            CONF / "config.yaml",
            (CONF / "config.yaml").read_text().replace("defaults:", f"{typo}:"),
        )
        [problem] = problems([], user_dir)
        assert problem.key == typo
        assert names(problem, "defaults")


@EVERY
@pytest.mark.parametrize("file", ["config", "recipe"])
def test_in_defaults_lists(user_dir: Path, file: str, every: bool) -> None:
    path = CONF / "config.yaml" if file == "config" else RECIPES / "text_finetune.yaml"
    words = [] if file == "config" else ["recipe=text_finetune", *NEEDED["text_finetune"]]
    lines = path.read_text().splitlines()
    start = lines.index("defaults:") + 1
    longest = max(len(line) for line in lines)
    for place in range(0, longest, 1 if every else 3):
        wanted = {}
        mutated = list(lines)
        for number in range(start, len(lines)):
            if not lines[number].startswith("  - "):
                break
            item = lines[number].removeprefix("  - ").partition(":")[0]
            if place >= len(item) or item[place] in " /":
                continue
            mutated[number] = f"  - {lines[number][4:][:place]}{lines[number][4:][place + 1 :]}"
            meant = next(
                word
                for word in item.split(" ")
                if item.index(word) <= place < item.index(word) + len(word)
            )
            wanted[number + 1] = meant
        if not wanted:
            continue
        written = write(user_dir, path, "\n".join(mutated) + "\n")
        reported = [p for p in problems(words, user_dir) if not p.origin.startswith("command line")]
        found = {int(p.origin.rpartition(":")[2]): p for p in reported}
        assert found.keys() == wanted.keys()
        for number, meant in wanted.items():
            assert names(found[number], meant), found[number]
            assert str(written) in found[number].origin
