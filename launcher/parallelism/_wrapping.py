"""Modules of a network whose parameters are gathered together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from launcher.contracts import canonical_name
from launcher.errors import ConfigError, Problem


def find_blocks(module: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the submodules that get a group of parameters of their own, inner ones first.

    A block that shares a parameter with the rest of the network is not among them: the parameter
    can be in one group only.

    Args:
        module: The network.
        patterns: Patterns of the blocks' names; None for those that transformers does not split
            over devices (`_no_split_modules`), or else those of the largest list of equal modules.

    Raises:
        ConfigError: A pattern matches no module that has parameters and a forward pass.
    """
    names = {child: canonical_name(name) for name, child in module.named_modules() if name}
    if patterns is not None:
        chosen = set(_matching(names, patterns))
    else:
        unsplit = getattr(module, "_no_split_modules", None) or ()
        chosen = {child for child in names if type(child).__name__ in unsplit}
        chosen = chosen or set(_repeated(module))
    uses = _uses(module)
    return {
        names[child]: child
        for child in reversed(names)
        if child in chosen
        and _is_shardable(child)
        and all(count == uses[param] for param, count in _uses(child).items())
    }


def _matching(names: dict[nn.Module, str], patterns: Sequence[str]) -> Iterator[nn.Module]:
    for place, pattern in enumerate(patterns):
        found = [
            child
            for child, name in names.items()
            if re.search(pattern, name) and _is_shardable(child)
        ]
        if not found:
            raise ConfigError(
                [
                    Problem(
                        f"parallelism.wrap[{place}]",
                        f"{pattern!r} matches no module with parameters and a forward pass; "
                        "`trainctl config params` prints the names",
                    )
                ]
            )
        yield from found


def _repeated(module: nn.Module) -> Sequence[nn.Module]:
    """Return the members of the list of equal modules that has most parameters."""
    lists = [
        members
        for child in module.modules()
        if isinstance(child, nn.ModuleList | nn.Sequential)
        if len(members := list(child.children())) > 1
        and len({type(member) for member in members}) == 1
    ]
    return max(lists, key=lambda ms: sum(map(_elements, ms)), default=())


def _elements(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def _is_shardable(module: nn.Module) -> bool:
    is_container = isinstance(module, nn.ModuleList | nn.ModuleDict)
    return not is_container and any(True for _ in module.parameters())


def _uses(module: nn.Module) -> Counter[Tensor]:
    """Return how many modules hold each parameter."""
    return Counter(param for child in module.modules() for param in child.parameters(recurse=False))
