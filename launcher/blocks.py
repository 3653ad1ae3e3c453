"""Find the blocks of a network: the layers that are sharded, recomputed or compiled one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from launcher.contracts import canonical_name
from launcher.errors import ConfigError, Problem


def sharded_blocks(
    module: nn.Module, patterns: Sequence[str] | None, key: str
) -> dict[str, nn.Module]:
    """Return the submodules that get a group of parameters of their own, inner ones first.

    A block that shares a parameter with the rest of the network is not among them: the parameter
    can be in one group only.

    Args:
        module: The network.
        patterns: Patterns of the blocks' names; None for those that transformers does not split
            over devices (`_no_split_modules`), or else those of the largest list of equal modules.
        key: The setting that has the patterns.

    Raises:
        ConfigError: A pattern matches no module that has parameters and a forward pass.
    """
    names = _names(module)
    chosen = _chosen(module, names, patterns, key)
    uses = _uses(module)
    return {
        names[child]: child
        for child in reversed(names)
        if child in chosen
        and _has_parameters(child)
        and all(count == uses[param] for param, count in _uses(child).items())
    }


def repeated_blocks(
    module: nn.Module, patterns: Sequence[str] | None, key: str
) -> dict[str, nn.Module]:
    """Return the layers that a network repeats, in their order, none within another.

    Args:
        module: The network.
        patterns: Patterns of the blocks' names; None for those of `sharded_blocks` of which there
            are several.
        key: The setting that has the patterns.

    Raises:
        ConfigError: There is no such block.
    """
    names = _names(module)
    chosen = _chosen(module, names, patterns, key)
    if patterns is None:
        # Embeddings, which some models do not split either, are no layers.
        counts = Counter(type(child).__name__ for child in chosen)
        repeated = {child for child in chosen if counts[type(child).__name__] > 1}
        chosen = repeated or chosen
    if not chosen:
        raise ConfigError(
            [
                Problem(
                    key,
                    f"must name the blocks, because {type(module).__name__} has no list of equal "
                    "layers; `trainctl config params` prints the names",
                )
            ]
        )
    outer = {names[child] for child in chosen}
    return {
        name: child
        for child, name in names.items()
        if child in chosen and not any(name.startswith(f"{other}.") for other in outer)
    }


def give_class(module: nn.Module, mixin: Any) -> None:
    """Let a module's class inherit from `mixin` first; names and parameters stay.

    Not a wrapper: that would rename the parameters. Not another `forward` in the instance: a copy
    of the module would call the original.
    """
    own: Any = type(module)
    module.__class__ = _combined(mixin, own)


@cache
def _combined(mixin: Any, cls: Any) -> Any:
    # The same name: blocks are recognised by it, and exports write that of the whole network.
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})


def _names(module: nn.Module) -> dict[nn.Module, str]:
    return {child: canonical_name(name) for name, child in module.named_modules() if name}


def _chosen(
    module: nn.Module,
    names: Mapping[nn.Module, str],
    patterns: Sequence[str] | None,
    key: str,
) -> set[nn.Module]:
    if patterns is not None:
        return set(_matching(names, patterns, key))
    unsplit = getattr(module, "_no_split_modules", None) or ()
    return {child for child in names if type(child).__name__ in unsplit} or set(_repeated(module))


def _matching(
    names: Mapping[nn.Module, str], patterns: Sequence[str], key: str
) -> Iterator[nn.Module]:
    for place, pattern in enumerate(patterns):
        found = [
            child
            for child, name in names.items()
            if re.search(pattern, name) and _has_parameters(child)
        ]
        if not found:
            raise ConfigError(
                [
                    Problem(
                        f"{key}[{place}]",
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


def _has_parameters(module: nn.Module) -> bool:
    is_container = isinstance(module, nn.ModuleList | nn.ModuleDict)
    return not is_container and any(True for _ in module.parameters())


def _uses(module: nn.Module) -> Counter[Tensor]:
    """Return how many modules hold each parameter."""
    return Counter(param for child in module.modules() for param in child.parameters(recurse=False))
