"""Import torch without torch._dynamo, which is loaded when something compiles.

The constructor and the first step of any torch optimizer import torch._dynamo, and sympy with it:
over a second of CPU time and a thousand files for each rank, only to tell the compiler to leave
`add_param_group` alone. Until something else of torch._dynamo is asked for, nothing has been
compiled, and there is nothing to tell. (Models of transformers import it themselves.)
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

from typing_extensions import override

_NAME = "torch._dynamo"
# What the import system and `inspect` read of a module. `__path__` is not in it: whoever reads
# that is about to import a submodule, which expects the package to have been executed.
_KNOWN_UNLOADED = frozenset({"__class__", "__dict__", "__file__", "__name__", "__spec__"})


def import_torch() -> None:
    """Import torch; delay torch._dynamo until it is needed, if nothing has imported it yet."""
    import torch

    spec = None if _NAME in sys.modules else importlib.util.find_spec(_NAME)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Unloaded
    sys.modules[_NAME] = module
    torch._dynamo = module  # noqa: SLF001 - as the import of a submodule sets it


class _Unloaded(ModuleType):
    """torch._dynamo before its code is executed.

    Answers the two calls that torch's optimizers make; any other access executes the module.
    """

    @override
    def __getattribute__(self, name: str) -> Any:
        if name in _KNOWN_UNLOADED:
            return super().__getattribute__(name)
        if name in _ANSWERS:
            return _ANSWERS[name]
        _load(self)
        return getattr(self, name)


_lock = threading.RLock()
# Functions for which torch keeps our answer as an attribute.
_asked: list[Callable[..., Any]] = []


def _load(module: ModuleType) -> None:
    with _lock:
        spec = module.__spec__
        if type(module) is not _Unloaded or spec is None or spec.loader is None:
            return
        module.__class__ = ModuleType  # type: ignore[assignment] # its base class
        spec.loader.exec_module(module)
        for function in _asked:
            # torch asks again, and then gets what keeps the compiler out of the function.
            delattr(function, "__dynamo_disable")
        _asked.clear()


def _graph_break(msg: str = "") -> None:
    """Do nothing: outside of a compiled function torch's own does nothing either."""


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
