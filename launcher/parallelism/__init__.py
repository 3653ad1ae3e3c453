"""Engines: everything about devices and collectives.

An option defines the mesh of ranks (`layout`) and builds an `Engine` of `launcher.contracts`. No
other package may depend on the kind of engine.

To add one: `launcher/parallelism/<kind>.py` with a `ParallelismOption`, and
`conf/parallelism/<kind>.yaml`; `tests/contract/test_engines.py` then compares it with `single`. An
engine may derive from one of those exported here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.parallelism._ddp_engine import DDPEngine
    from launcher.parallelism._distributed_engine import DistributedEngine
    from launcher.parallelism._torch_engine import SingleEngine, TorchEngine
else:
    # Imported at first use: the CLI loads this package for its option classes, without torch.
    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ["DDPEngine", "DistributedEngine", "SingleEngine", "TorchEngine"]

_MODULES = {
    "DDPEngine": "_ddp_engine",
    "DistributedEngine": "_distributed_engine",
    "SingleEngine": "_torch_engine",
    "TorchEngine": "_torch_engine",
}
