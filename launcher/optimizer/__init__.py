"""Optimizers: one option per kind, and the rules for parameter groups.

* **Groups.** `param_groups` decides which parameter decays, its learning rate, and why; every kind
  builds from it, so that patterns, layer decay, overrides and freezing work alike everywhere.
  `trainctl config params` shows the outcome.
* **Learning rates** are set by the engine: `schedule.lr(step) * group["lr_scale"]`. No optimizer
  here schedules itself except those that declare it (`owns_schedule`, or an `lr` of null).
* **State between steps** is plain tensors and numbers by name in `optimizer.state[param]`, so that
  it can be saved without pickle and loaded by another engine. A group's own state is named in
  `group_state`. A library whose optimizer keeps objects, lists or quantised tensors is wrapped
  (`_libraries`, `_low_bit`).
* **Shards.** A parameter may be any part of a tensor (`OptimizerTarget.sharding`). A kind whose
  update goes element by element sets `elementwise`; one that needs norms or means of whole tensors
  adds its sums up over ranks (`_blockwise/per_tensor.py`, `_torch/muon.py`) and overrides
  `refuses_shards`; all others are refused where parameters are sharded.
* **Libraries.** A kind's docstring names the implementation and the reason for it. Other packages
  are imported in `build` only; `preflight` reports a missing one before anything starts.

The kinds are the modules of this package. Their implementations: `_groups` (parameter groups and
shared fields), `_torch` (torch's optimizers, and ours in torch operations), `_blockwise`,
`_low_bit` and `_libraries`.

To add a kind: one module with one public `OptimizerOption`, and conf/optimizer/<kind>.yaml with all
its values, `defaults: [_groups, _self_]` among them. The contract tests find it by themselves; a
trajectory of its reference belongs in tests/optimizer.
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
