"""Selection of hidden matrices, for optimizers with a special update of matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.errors import ConfigError, Problem
from launcher.optimizer._groups.param_groups import is_norm, nearest, parameters

# Hidden matrices are `weight`s of numbered blocks (`model.layers.3.mlp.up_proj.weight`), which
# excludes token embeddings, the output head, and tables of position biases.
_NUMBERED = re.compile(r"(^|\.)\d+\..*weight$")
_HEADS = re.compile(r"(^|\.)\w*heads?\.\d+\.")


def hidden_matrices(
    target: OptimizerTarget, *, matrices: Sequence[str], not_matrices: Sequence[str]
) -> set[nn.Parameter]:
    """Return the hidden matrices; patterns in `not_matrices` win over those in `matrices`.

    Raises:
        ConfigError: A pattern matches nothing, or there is no hidden matrix at all.
    """
    found = list(parameters(target))
    names = [name for parameter in found for name in parameter.names]
    problems = [
        Problem(f"optimizer.{key}", f"{pattern!r} matches no parameter; nearest: {near}")
        for key, patterns in (("matrices", matrices), ("not_matrices", not_matrices))
        for pattern in patterns
        if not any(re.search(pattern, name) for name in names)
        for near in [", ".join(nearest(pattern, names))]
    ]
    if problems:
        raise ConfigError(problems)
    hidden = {
        parameter.param
        for parameter in found
        # Muon and projections are of single matrices: stacked experts have three dims.
        if len(parameter.shape) == 2
        and not any(parameter.matched_by(pattern) for pattern in not_matrices)
        and (
            any(parameter.matched_by(pattern) for pattern in matrices)
            or (
                _NUMBERED.search(parameter.names[0]) is not None
                and _HEADS.search(parameter.names[0]) is None
                and not any(
                    issubclass(owner, nn.Embedding) or is_norm(owner) for owner in parameter.owners
                )
            )
        )
    }
    # AdamW alone would train everything, under the name of another optimizer.
    if not hidden:
        message = "the model has no numbered blocks with matrices; name them by patterns"
        raise ConfigError([Problem("optimizer.matrices", message)])
    return hidden


def check_overrides(
    target: OptimizerTarget,
    option: OptimizerOption,
    hidden: Collection[nn.Parameter],
    *,
    of_hidden: Collection[str],
    of_rest: Collection[str],
) -> None:
    """Raise ConfigError for an override of an option that does not apply to its parameters.

    Args:
        target: The network.
        option: The optimizer.
        hidden: The hidden matrices, which the optimizer itself steps; AdamW steps the rest.
        of_hidden: Options that AdamW does not read.
        of_rest: Options that only AdamW reads.
    """
    found = [each for each in parameters(target) if each.param.requires_grad]
    halves = [(of_hidden, True, "AdamW"), (of_rest, False, option.kind.capitalize())]
    problems = [
        Problem(
            f"optimizer.groups.overrides.{place}.{key}",
            f"has no effect: {other} steps all parameters that {override.pattern!r} matches",
        )
        for place, override in enumerate(option.groups.overrides)
        for keys, in_hidden, other in halves
        for key in override.values
        if key in keys
        and not any(
            each.matched_by(override.pattern) and (each.param in hidden) == in_hidden
            for each in found
        )
    ]
    if problems:
        raise ConfigError(problems)


def split(
    groups: Sequence[dict[str, Any]], belongs: Callable[[nn.Parameter], bool], name: str
) -> list[dict[str, Any]]:
    """Return groups of only the parameters that belong; empty groups are left out."""
    # With the name of the half: the state of a group is saved under the group's name.
    parts = [
        {
            **group,
            "params": [param for param in group["params"] if belongs(param)],
            "name": f"{name}, {group['name']}",
        }
        for group in groups
    ]
    return [part for part in parts if part["params"]]
