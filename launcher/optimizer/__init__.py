"""How gradients become updates: one option per kind, and the rules for parameter groups.

* **Groups.** `param_groups` decides which parameter decays, which learning rate it has and why;
  every kind builds from it, so that patterns, layer decay, overrides and freezing work alike
  everywhere. `trainctl config params` shows the outcome.
* **Learning rates** are set by the engine: `schedule.lr(step) * group["lr_scale"]`. No optimizer
  here schedules itself, but for those that say so (`owns_schedule`, or an `lr` of null).
* **State between steps** is plain tensors and numbers by name in `optimizer.state[param]`, so that
  it can be saved without pickle and loaded by another engine. What a group remembers is named in
  `group_state`. A library whose optimizer keeps objects, lists or quantised tensors is wrapped
  (`_soap.py`, `_low_bit_torchao.py`) or its method is our own (`_low_rank.py`).
* **Shards.** A parameter may be any part of a tensor (`OptimizerTarget.sharding`). A kind whose
  update goes element by element sets `elementwise`; one that needs norms or means of whole tensors
  adds its sums up over ranks (`_per_tensor.py`, `_muon_shards.py`) and overrides `refuses_shards`;
  all others are refused where parameters are sharded.
* **Libraries.** A kind says in its docstring whose code it runs and why. What torch does not have
  comes as an extra: `preflight` names it before anything starts, and it is imported in `build`.

To add a kind: one module with one public `OptimizerOption`, and conf/optimizer/<kind>.yaml with all
its values, `defaults: [_groups, _self_]` among them. The contract tests find it by themselves; a
trajectory of its reference belongs in tests/optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.contracts import OptimizerOption, OptimizerTarget


def param_groups(target: OptimizerTarget, option: OptimizerOption) -> list[dict[str, Any]]:
    """Return the groups that a torch optimizer is constructed from.

    Args:
        target: What the optimizer is built for.
        option: The optimizer's option, whose `groups` say what differs between parameters.

    Returns:
        In the order of each group's first parameter: `params`, `name`, `lr`, `lr_scale`,
        `weight_decay` and whatever overrides set. `lr` is missing where the option has none.

    Raises:
        ConfigError: A pattern matches nothing, `layer_decay` finds no blocks, nothing is left to
            train, or the parameters are shards and the optimizer refuses them.
    """
    from launcher.optimizer import _param_groups

    return _param_groups.param_groups(target, option)
