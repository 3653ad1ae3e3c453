"""Import torch without torch._dynamo, which is loaded on first use."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

from typing_extensions import override

# The constructor and the first step of any torch optimizer import torch._dynamo and sympy, over a
# second of CPU time and a thousand files for each rank, only to exclude `add_param_group` from
# compilation. Before anything has been compiled there is nothing to exclude it from. (Models of
# transformers import torch._dynamo themselves.)
_NAME = "torch._dynamo"
# Attributes that the import system and `inspect` read. Not `__path__`: it is read to import a
# submodule, which expects the package to be loaded.
_KNOWN_UNLOADED = frozenset({"__class__", "__dict__", "__file__", "__name__", "__spec__"})


def import_torch() -> None:
    """Import torch, and delay torch._dynamo unless it is already imported."""
    import torch

    spec = None if _NAME in sys.modules else importlib.util.find_spec(_NAME)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Unloaded
    sys.modules[_NAME] = module
    torch._dynamo = module  # noqa: SLF001 - as the import of a submodule sets it


class _Unloaded(ModuleType):
    """torch._dynamo before its code is executed; any access but those of _ANSWERS executes it."""

    @override
    def __getattribute__(self, name: str) -> Any:
        if name in _KNOWN_UNLOADED:
            return super().__getattribute__(name)
        if name in _ANSWERS:
            return _ANSWERS[name]
        _load(self)
        return getattr(self, name)


_lock = threading.RLock()
# torch stores the answer of `disable` as an attribute of these functions.
_asked: list[Callable[..., Any]] = []


def _load(module: ModuleType) -> None:
    with _lock:
        spec = module.__spec__
        if type(module) is not _Unloaded or spec is None or spec.loader is None:
            return
        module.__class__ = ModuleType  # type: ignore[assignment] # its base class
        spec.loader.exec_module(module)
        for function in _asked:
            # torch then calls `disable` again, of the loaded module.
            delattr(function, "__dynamo_disable")
        _asked.clear()


# Outside of a compiled function torch's own does nothing either.
def _graph_break(msg: str = "") -> None: ...


def _disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    if fn is not None and options == {"wrapping": False}:  # the call of torch._compile
        _asked.append(fn)
        return fn
    module = sys.modules[_NAME]
    _load(module)
    return cast("Callable[..., Any]", module.disable(fn, recursive, **options))


_ANSWERS: dict[str, Callable[..., Any]] = {"graph_break": _graph_break, "disable": _disable}
