"""No code outside a group recognises one of its kinds: it uses the option's base class instead."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import registry
from launcher.contracts import GROUPS

LAUNCHER = Path(__file__).parents[1] / "launcher"
KINDS = {group: set(registry.kinds(group)) for group in GROUPS}
FIELDS = {
    group: {
        field
        for kind in registry.kinds(group)
        for field in registry.option_class(group, kind).model_fields
        if field not in registry.OPTION_TYPES[group].model_fields
    }
    for group in GROUPS
}
"""Fields that a kind adds to those of its group."""


def branches(source: str, own: str = "") -> Iterator[str]:
    """The places of a module that recognise a kind, or a kind's field, of a group not its own."""
    tree = ast.parse(source)
    classes = _classes_of_kinds(tree, own)
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                sides = [node.left, *node.comparators]
                found = any(_mentions_kind(side) for side in sides) and any(
                    _is_foreign_kind(text, sides, own) for side in sides for text in _texts(side)
                )
                found |= any(_mentions(side, "model_fields") for side in sides) and any(
                    _is_foreign_field(text, own) for side in sides for text in _texts(side)
                )
                found |= any(_calls(side, "type") for side in sides) and any(
                    isinstance(side, ast.Name) and side.id in classes for side in sides
                )
            case ast.Match(subject=subject, cases=cases):
                found = _mentions_kind(subject) and any(
                    _is_foreign_kind(text, [subject], own)
                    for case in cases
                    for text in _texts(case.pattern)
                )
            case ast.MatchClass(cls=ast.Name(id=name)):
                found = name in classes
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, wanted]):
                found = any(
                    isinstance(each, ast.Name) and each.id in classes for each in ast.walk(wanted)
                )
            case ast.Call(
                func=ast.Name(id="hasattr" | "getattr"),
                args=[_, ast.Constant(value=str(field)), *_],
            ):
                found = _is_foreign_field(field, own)
            case _:
                found = False
        if found:
            assert isinstance(node, ast.expr | ast.stmt | ast.pattern)
            yield f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}"


def _classes_of_kinds(tree: ast.Module, own: str) -> set[str]:
    """Names that a module imports from a group's package."""
    packages = tuple(f"launcher.{group}." for group in GROUPS if group != own)
    return {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(packages)
        for name in node.names
    }


def _mentions(node: ast.expr, attribute: str) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr == attribute for n in ast.walk(node))


def _mentions_kind(node: ast.expr) -> bool:
    """`option.kind`, `kind`, `values["kind"]` or `values.get("kind")`."""
    return _mentions(node, "kind") or any(
        (isinstance(each, ast.Name) and each.id == "kind")
        or (isinstance(each, ast.Subscript) and list(_texts(each.slice)) == ["kind"])
        or (isinstance(each, ast.Call) and [t for a in each.args for t in _texts(a)] == ["kind"])
        for each in ast.walk(node)
    )


def _texts(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def _is_foreign_kind(text: str, sides: list[ast.expr], own: str) -> bool:
    """Return True if a text is a kind of another group; `config.scheduler.kind` says of which."""
    named = {
        each.value.attr
        for side in sides
        for each in ast.walk(side)
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Attribute)
    }
    groups = {group for group, kinds in KINDS.items() if text in kinds}
    return bool(groups & named - {own}) or (bool(groups) and own not in groups)


def _is_foreign_field(field: str, own: str) -> bool:
    groups = {group for group, fields in FIELDS.items() if field in fields}
    return bool(groups) and own not in groups


def _calls(node: ast.expr, function: str) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
    )


@pytest.mark.parametrize(
    "source",
    [
        'if config.parallelism.kind == "single": pass',
        'saves = config.checkpoint.kind != "none"',
        'if option.kind in ("auto", "samples"): pass',
        'if config["scheduler"]["kind"] == "adafactor": pass',
        'if values.get("kind") == "ddp": pass',
        'match config.launch.kind:\n    case "local": pass',
        "from launcher.accumulation.auto import Auto\nfound = isinstance(option, Auto)",
        "from launcher.accumulation.auto import Auto\nfound = isinstance(option, (int, Auto))",
        "from launcher.accumulation.auto import Auto\nfound = type(option) is Auto",
        "from launcher.accumulation.auto import Auto\nmatch option:\n    case Auto(): pass",
        'if getattr(config.precision, "rounding", None) == "kahan": pass',
        'key = "scheduler.metric" if hasattr(config.scheduler, "metric") else "scheduler"',
        'if "init" in type(model).model_fields: pass',
    ],
)
def test_a_planted_branch_is_found(source: str) -> None:
    assert list(branches(source))


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ('if self.kind == "adamw": pass', "optimizer"),
        ('if kind == "extra_forbidden": pass', ""),
        ("if other != kind and field in option_class(group, other).model_fields: pass", ""),
        ('notes = getattr(error, "__notes__", ())', ""),
        ("option = getattr(config, group)", ""),
        ("from launcher.contracts import Option\nfound = isinstance(value, Option)", ""),
        (
            "from launcher.optimizer._low_bit.options import LowBit\nisinstance(option, LowBit)",
            "optimizer",
        ),
    ],
)
def test_what_recognises_no_kind_of_another_group_passes(source: str, own: str) -> None:
    assert not list(branches(source, own))


def test_a_group_may_not_recognise_the_kinds_of_another() -> None:
    assert list(branches('if config.scheduler.kind == "constant": pass', "optimizer"))
    assert list(branches('if config.scheduler.kind == "adafactor": pass', "optimizer"))


@pytest.mark.parametrize("path", sorted(LAUNCHER.rglob("*.py")), ids=lambda p: str(p.name))
def test_no_code_outside_a_group_recognises_its_kinds(path: Path) -> None:
    top = path.relative_to(LAUNCHER).parts[0]
    found = list(branches(path.read_text("utf-8"), top if top in GROUPS else ""))
    assert not found, f"{path}: give the group's contract a property to ask instead"
