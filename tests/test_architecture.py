"""The rules of CONTRIBUTING.md about the tree; each test names what breaks its rule."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launcher.contracts import GROUPS

ROOT = Path(__file__).parents[1]
LAUNCHER = ROOT / "launcher"
SOURCES = sorted(LAUNCHER.rglob("*.py"))
PRESETS = sorted(path for group in GROUPS for path in (ROOT / "conf" / group).glob("[!_]*.yaml"))

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def kinds(group: str) -> set[str]:
    modules = {path.stem for path in (LAUNCHER / group).glob("[!_]*.py")}
    packages = {path.parent.name for path in (LAUNCHER / group).glob("[!_]*/__init__.py")}
    return modules | packages


def docstring_lines(node: Documented) -> set[int]:
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str())) as text, *_]:
            return set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return set()


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_a_package_yaml_tests_and_a_field(group: str) -> None:
    from launcher.config.schema import RunConfig

    doc = ast.get_docstring(ast.parse((LAUNCHER / group / "__init__.py").read_text("utf-8")))
    assert doc, f"launcher/{group}/__init__.py needs a docstring: what lives here, how to add one"
    assert len(doc) > 100, f"launcher/{group}/__init__.py says too little: {doc!r}"
    assert list((ROOT / "conf" / group).glob("*.yaml")), f"conf/{group} holds no preset"
    assert list((ROOT / "tests" / group).glob("test_*.py")), f"tests/{group} holds no test"
    assert group in RunConfig.model_fields


@pytest.mark.parametrize("group", GROUPS)
def test_every_kind_has_a_preset(group: str) -> None:
    presets = (yaml.safe_load(path.read_text("utf-8")) for path in PRESETS)
    used = {
        preset.get("kind")
        for path, preset in zip(PRESETS, presets, strict=True)
        if path.parent.name == group
    }
    assert kinds(group) <= used, (
        f"kinds without YAML in conf/{group}: {sorted(kinds(group) - used)}"
    )


@pytest.mark.parametrize("path", PRESETS, ids=relative)
def test_every_preset_names_its_kind_first(path: Path) -> None:
    first = next(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
    match = re.fullmatch(r"kind: (\w+)", first)
    assert match, f"the first line of {relative(path)} must be `kind: …`, not {first!r}"
    assert match[1] in kinds(path.parent.name), (
        f"there is no launcher/{path.parent.name}/{match[1]}.py"
    )


def test_conf_holds_no_folder_that_is_not_a_group() -> None:
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert folders == set(GROUPS)


def test_the_loop_fits_one_screen_and_names_no_kind() -> None:
    text = (LAUNCHER / "training" / "loop.py").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    tree = list(ast.walk(ast.parse(text)))
    words: set[object] = {node.id for node in tree if isinstance(node, ast.Name)}
    words |= {node.value for node in tree if isinstance(node, ast.Constant)}
    words |= {a.name for node in tree if isinstance(node, ast.ImportFrom) for a in node.names}
    assert not words & {kind for group in GROUPS for kind in kinds(group)}
    modules = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
    assert not modules & {f"launcher.{group}" for group in GROUPS}


def test_files_stay_small() -> None:
    """Ask of a file that grows past this what second thing it does."""
    sizes = {relative(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert not {path: lines for path, lines in sizes.items() if lines > 400}


def test_functions_stay_small() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name}: {lines} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > 60
    ]
    assert not long


def test_public_things_are_documented() -> None:
    bare = [
        f"{relative(path)}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', 'module')}"
        for path in SOURCES
        # As ruff sees it: what is in a private module or package is private.
        if not any(re.match(r"_(?!_)", part) for part in path.relative_to(LAUNCHER).parts)
        for node in public(ast.parse(path.read_text("utf-8")))
        if not docstring_lines(node) and not overrides(node) and not field_of_a_protocol(node)
    ]
    assert not bare


def public(tree: ast.Module) -> Iterator[Documented]:
    """The module, its public classes and functions, and the public methods of those classes."""
    yield tree
    for node in tree.body:
        if isinstance(node, Documented) and not getattr(node, "name", "").startswith("_"):
            yield node
            for member in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(member, Documented) and not getattr(member, "name", "_").startswith(
                    "_"
                ):
                    yield member


def overrides(node: Documented) -> bool:
    """Return True if the contract that the method fulfils documents it."""
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(mark, ast.Name) and mark.id == "override" for mark in node.decorator_list
    )


def field_of_a_protocol(node: Documented) -> bool:
    """A property without a body: the class that has the field documents it."""
    return isinstance(node, ast.FunctionDef) and (
        [ast.unparse(mark) for mark in node.decorator_list] == ["property"]
        and [ast.unparse(statement) for statement in node.body] == ["..."]
    )


def test_field_docs_are_written() -> None:
    from launcher import registry
    from launcher.cli._types import meaning

    silent = [
        f"{group}.{kind}.{name}"
        for group in GROUPS
        for kind in registry.kinds(group)
        for name in registry.option_class(group, kind).model_fields
        if not meaning(registry.option_class(group, kind), name)
    ]
    assert not silent


def test_every_module_is_in_a_layer() -> None:
    """Import-linter checks only the modules that its layers name."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    [contract] = [each for each in tool["contracts"] if each["type"] == "layers"]
    layers = {name for layer in contract["layers"] for name in re.split(r"\s*\|\s*", layer)}
    outside = []
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        above = {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
        # A package whose modules are in different layers must import nothing itself.
        empty = any(layer.startswith(f"{module}.") for layer in layers) and not any(
            isinstance(node, ast.Import | ast.ImportFrom)
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        )
        if not above & layers and not empty:
            outside.append(module)
    assert not outside


def test_no_module_is_named_utils() -> None:
    banned = re.compile(r"_?(utils?|helpers?|managers?|base|common|misc)")
    assert not [relative(path) for path in SOURCES if banned.fullmatch(path.stem)]


def test_the_readme_map_is_the_tree() -> None:
    """The fenced block that starts with the root folder: an entry a line, indented by its depth."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    trees = [block for block in blocks if re.search(r"^\W*launcher/", block, re.MULTILINE)]
    assert len(trees) == 1, "README.md must hold one fenced tree map that names launcher/"
    mapped = {Path(path) for path in tree_paths(trees[0])}
    missing = sorted(str(path) for path in mapped if not (ROOT / path).exists())
    assert not missing, f"the map in README.md names what is not there: {missing}"
    packages = {path.parent.relative_to(ROOT) for path in LAUNCHER.glob("*/__init__.py")}
    unmapped = sorted(str(path) for path in packages - mapped)
    assert not unmapped, f"the map in README.md leaves out: {unmapped}"


def test_the_readme_tests_what_continuous_integration_tests() -> None:
    [command] = [
        line
        for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
        if line.startswith("pip")
    ]
    assert command in (ROOT / "README.md").read_text("utf-8").splitlines()


def tree_paths(block: str) -> Iterator[str]:
    """Paths of a tree drawn with spaces or box characters; a comma separates entries of a line."""
    parents: list[tuple[int, str]] = []
    for line in block.splitlines():
        match = re.match(r"([\s│├└─|`+-]*)((?:[\w.*-]+/?(?:, *)?)+)", line)
        if not match or not match[2]:
            continue
        depth = len(match[1])
        while parents and parents[-1][0] >= depth:
            parents.pop()
        folder = "".join(name for _, name in parents)
        names = [name for name in re.split(r", *", match[2]) if name]
        yield from (folder + name for name in names if name not in {"./", "trainctl/"})
        if len(names) == 1 and names[0].endswith("/") and names[0] not in {"./", "trainctl/"}:
            parents.append((depth, names[0]))
