"""Optimizers: one option per kind, and the rules for parameter groups.

Every kind builds from `param_groups`, which decides what decays, at which learning rate, and why
(`trainctl config params`). The engine sets each rate, to `schedule.lr(step) * group["lr_scale"]`.
State is tensors and numbers by name in `optimizer.state[param]`, and options of groups named in
`group_state`. Kinds for sharded parameters set `elementwise` or override `refuses_shards`.

Implementations: `_groups` (parameter groups and shared fields), `_torch` (torch's optimizers, and
own ones in torch operations), `_blockwise`, `_low_bit` and `_libraries`.

To add a kind: one module with one public `OptimizerOption`, and conf/optimizer/<kind>.yaml with all
its values, `defaults: [_groups, _self_]` among them. Add a trajectory of its reference to
tests/optimizer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.optimizer._groups.param_groups import (
        Assignment,
        Named,
        assign,
        param_groups,
        parameters,
    )
    from launcher.optimizer._groups.state_size import state_bytes

__all__ = ["Assignment", "Named", "assign", "param_groups", "parameters", "state_bytes"]


def __getattr__(name: str) -> Any:
    # These import torch, which the command line must not pay for when it lists kinds.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "state_size" if name == "state_bytes" else "param_groups"
    return getattr(import_module(f"{__name__}._groups.{module}"), name)
