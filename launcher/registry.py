"""Find the kinds of each group: every module of `launcher.<group>` is one.

Packages add kinds by entry points of the group `trainctl.options`, named `<group>.<kind>`, that
name the option class. A packaged kind cannot be replaced.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from launcher import contracts
from launcher.contracts import GROUPS, Option
from launcher.errors import ConfigError, Problem
from launcher.suggest import closest, did_you_mean

ENTRY_POINTS = "trainctl.options"

OPTION_TYPES: dict[str, type[Option]] = {
    group: getattr(contracts, f"{group.capitalize()}Option") for group in GROUPS
}
"""Base class of each group's options."""


def kinds(group: str) -> tuple[str, ...]:
    """Return the kinds of a group, sorted, without importing them."""
    return tuple(sorted({*_packaged(group), *_added(group)}))


def option_class(group: str, kind: str) -> type[Option]:
    """Return the option class of a kind; ConfigError if it is unknown or its package is broken."""
    # Packaged kinds first: an installed package must not change what `optimizer=adamw` means.
    if kind in _packaged(group):
        return _only_option(group, f"launcher.{group}.{kind}")
    if kind in _added(group):
        return _loaded(group, _added(group)[kind])
    known = kinds(group)
    hint = did_you_mean(closest(kind, known)) or f"; it can be: {', '.join(known)}"
    raise ConfigError([Problem(f"{group}.kind", f"no such kind of {group}: {kind!r}{hint}")])


def summary(group: str, kind: str) -> str:
    """Return the first line of the docstring of a kind's class."""
    return (inspect.getdoc(option_class(group, kind)) or "").partition("\n")[0]


@cache
def _packaged(group: str) -> frozenset[str]:
    package = import_module(f"launcher.{group}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return frozenset(name for name in names if not name.startswith("_"))


def _added(group: str) -> dict[str, EntryPoint]:
    return _entry_points(tuple(sys.path)).get(group, {})


@cache
def _entry_points(_path: tuple[str, ...]) -> dict[str, dict[str, EntryPoint]]:
    """Return entry points by group and kind."""
    # Cached, because the search reads the metadata of every installed package; by sys.path, which
    # tests and notebooks change.
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry_point in entry_points(group=ENTRY_POINTS):
        group, _, kind = entry_point.name.partition(".")
        found.setdefault(group, {})[kind] = entry_point
    return found


@cache
def _only_option(group: str, module_name: str) -> type[Option]:
    module = import_module(module_name)
    found = [
        member
        for name, member in vars(module).items()
        if inspect.isclass(member)
        and issubclass(member, OPTION_TYPES[group])
        # A module may import option classes that it derives from.
        and member.__module__ == module_name
        and not name.startswith("_")
    ]
    if len(found) != 1:
        raise TypeError(
            f"{module_name} must define exactly one public {OPTION_TYPES[group].__name__}, "
            f"but defines {[member.__name__ for member in found]}"
        )
    return found[0]


def _loaded(group: str, entry_point: EntryPoint) -> type[Option]:
    """Load the class that an entry point names."""
    package = entry_point.dist.name if entry_point.dist else entry_point.value
    where = f"the package {package} adds {group}={entry_point.name.partition('.')[2]}"
    try:
        loaded = entry_point.load()
    except Exception as error:
        raise ConfigError(
            [Problem(group, f"{where}, but cannot be imported: {type(error).__name__}: {error}")]
        ) from error
    if not (inspect.isclass(loaded) and issubclass(loaded, OPTION_TYPES[group])):
        base = OPTION_TYPES[group].__name__
        raise ConfigError(
            [Problem(group, f"{where}, but {entry_point.value} is no subclass of {base}")]
        )
    return loaded
