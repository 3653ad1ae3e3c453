"""`trainctl config params`: every parameter, its group, and why it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import bold, print_json, table

if TYPE_CHECKING:
    from torch import nn

    from launcher.config.schema import RunConfig
    from launcher.contracts import OptimizerOption


def main(argv: list[str]) -> int:
    """List the parameters of the model by optimizer group, without allocating weights."""
    arguments = Arguments(
        "config params",
        "[group=option] [key=value]",
        "Every parameter with its shape, the optimizer group that trains it, why it is there, and "
        "the group's options.",
        "trainctl config params model=llama_8b optimizer=muon",
        "trainctl config params 'optimizer.groups.frozen=[embed]'",
        json=True,
    )
    add_composition_flags(arguments)
    flags, overrides = arguments.split(argv)
    from launcher.config import derive

    config = composition(flags, overrides).load().config
    rows = described(meta_module(config), derive.optimizer(config))
    if flags.json:
        print_json({"params": rows})
    else:
        print(_as_text(rows))
    return 0


def meta_module(config: RunConfig) -> nn.Module:
    """Build the network of a config on the meta device: names and shapes, no weights."""
    from launcher.contracts import Head

    head = Head(config.task.head)
    module = config.model.build(head, "meta")
    config.adapter.adapt(module, head, config.seed)
    return module


def described(module: nn.Module, option: OptimizerOption) -> list[dict[str, Any]]:
    """Return a row per parameter, in the module's order: name, shape, group, options, why."""
    from launcher.contracts import OptimizerTarget
    from launcher.optimizer import assign, parameters

    target = OptimizerTarget(module, "meta")
    why = {assigned.param: assigned.why for assigned in assign(target, option)}
    # From the built optimizer and not from the rules: it may split groups further.
    groups = {
        param: group for group in option.build(target).param_groups for param in group["params"]
    }
    rows = []
    for parameter in parameters(target):
        group = groups.get(parameter.param)
        rows.append(
            {
                "name": parameter.names[0],
                "shared_as": parameter.names[1:],
                "shape": list(parameter.param.shape),
                "group": "frozen" if group is None else group["name"],
                "options": {} if group is None else _options(group, option),
                "why": why.get(parameter.param) or _frozen_by(parameter.names, option),
            }
        )
    return rows


def _options(group: Mapping[str, Any], option: OptimizerOption) -> dict[str, Any]:
    # Only settings: torch's groups also have switches such as `foreach` and `capturable`.
    keys = ["lr", "lr_scale", "weight_decay", *sorted(option.group_options)]
    return {key: group[key] for key in dict.fromkeys(keys) if key in group}


def _frozen_by(names: Sequence[str], option: OptimizerOption) -> str:
    import re

    # Read from the patterns, because a frozen parameter is in no group that could name its rule.
    for pattern in option.groups.frozen:
        if any(re.search(pattern, name) for name in names):
            return f"frozen pattern {pattern}"
    return "the model does not train it"


def _as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the parameters, then the groups with their options and sizes."""
    lines = [("parameter", "shape", "group", "why")]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
        shape = " × ".join(map(str, row["shape"])) or "scalar"
        shared = "".join(f" = {name}" for name in row["shared_as"])
        lines.append((row["name"] + shared, shape, row["group"], row["why"]))
    summary = [("group", "parameters", "elements", "options")]
    for name, members in groups.items():
        options = ", ".join(f"{k} {_shown(v)}" for k, v in members[0]["options"].items())
        elements = sum(_elements(member["shape"]) for member in members)
        summary.append((name, str(len(members)), f"{elements:,}", options or "not trained"))
    return "\n".join([table(lines), "", bold("Groups"), table(summary)])


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _elements(shape: Sequence[int]) -> int:
    import math

    return math.prod(shape)
