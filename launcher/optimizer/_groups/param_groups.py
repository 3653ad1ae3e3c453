"""Options of each parameter, with the rule that sets them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from launcher.contracts import OptimizerOption, OptimizerTarget, canonical_name
from launcher.errors import ConfigError, Problem

_RATES = frozenset({"lr", "lr_scale", "weight_decay"})
# All of torch's (`LayerNorm`, `BatchNorm2d`), and `LlamaRMSNorm`, `T5LayerNorm`, `…NormGated`.
_NORM = re.compile(r"Norm([123]d|Gated)?$")
# A block is a member of a list whose place is the first number in a name (`model.layers.3.mlp…`).
_BLOCK = re.compile(r"^(?:(.*?)\.)?(\d+)\.")


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Options of one parameter.

    Attributes:
        name: The parameter's first name in the module.
        param: The parameter.
        group: Name of its group.
        options: The group's options as the optimizer takes them: `lr`, `lr_scale`, and so on.
        why: Reasons for the decay and for every option that differs from the rest.
    """

    name: str
    param: nn.Parameter
    group: str
    options: Mapping[str, Any]
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A parameter, its full shape, and its canonical names, each with the type of its module."""

    # Patterns and types look at all names: a tied head is also an embedding.

    param: nn.Parameter
    shape: tuple[int, ...]
    names: list[str]
    owners: list[type[nn.Module]]

    def matched_by(self, pattern: str) -> bool:
        """Return True if a pattern matches one of the names."""
        return any(re.search(pattern, name) for name in self.names)


def param_groups(target: OptimizerTarget, option: OptimizerOption) -> list[dict[str, Any]]:
    """Return the groups that a torch optimizer is constructed from.

    Parameters with the same options for the same reasons are one group, with `params`, `name`,
    `lr`, `lr_scale`, `weight_decay` and what overrides set; no `lr` if the option has none.

    Raises:
        ConfigError: A pattern matches nothing, `layer_decay` finds no blocks, nothing is left to
            train, or the parameters are shards and the optimizer refuses them.
    """
    if target.is_sharded and (reason := option.refuses_shards()):
        # Here, because every kind builds from its groups: none takes shards for whole tensors.
        message = (
            f"{option.kind} cannot update shards of parameters: {reason}; use parallelism=ddp, or "
            "an optimizer that can, such as adamw or adafactor"
        )
        raise ConfigError([Problem("optimizer.kind", message)])
    groups: dict[str, dict[str, Any]] = {}
    for assigned in assign(target, option):
        group = groups.setdefault(
            assigned.group, {"params": [], "name": assigned.group, **assigned.options}
        )
        group["params"].append(assigned.param)
    return list(groups.values())


def assign(target: OptimizerTarget, option: OptimizerOption) -> list[Assignment]:
    """Return every trained parameter, in the module's order, with its options."""
    named = list(parameters(target))
    _check_patterns(named, option)
    for parameter in named:
        if _is_frozen(parameter, option):
            parameter.param.requires_grad_(False)
    scales = _layer_scales(named, option.groups.layer_decay)
    assignments = [
        _assign(parameter, option, scale)
        for parameter, scale in zip(named, scales, strict=True)
        # A tensor without elements has nothing to train, and matrix methods fail on it.
        if parameter.param.requires_grad and 0 not in parameter.shape
    ]
    if not assignments:
        raise ConfigError(
            [Problem("optimizer.groups.frozen", "leaves no parameter to train; freeze fewer")]
        )
    return assignments


def parameters(target: OptimizerTarget) -> Iterator[Named]:
    """Yield each of the module's parameters once, in order, under all of its canonical names."""
    found: dict[nn.Parameter, Named] = {}
    for path, owner in target.module.named_modules(remove_duplicate=False):
        for last, param in owner.named_parameters(recurse=False, remove_duplicate=False):
            name = canonical_name(f"{path}.{last}" if path else last)
            entry = found.setdefault(param, Named(param, target.shape_of(param), [], []))
            entry.names.append(name)
            entry.owners.append(type(owner))
    yield from found.values()


def _assign(
    parameter: Named, option: OptimizerOption, layer_scale: tuple[float, str]
) -> Assignment:
    # The last matching override wins.
    decays, why = _decays(parameter, option)
    label = ["decay" if decays else "no_decay"]
    values: dict[str, Any] = {}
    for override in option.groups.overrides:
        if parameter.matched_by(override.pattern):
            # One replaces the other: they would multiply.
            if override.values.keys() & {"lr", "lr_scale"}:
                values = {k: v for k, v in values.items() if k not in {"lr", "lr_scale"}}
            values |= override.values
            label.append(override.pattern)
            why += f"; override {override.pattern}"
    changed = option.overridden(values) if values else option
    scale, where = layer_scale
    if where:
        label.append(where)
        why += f"; lr times {scale:.4g} ({where})"
    # A decay that an override names applies to norms and biases too.
    weight_decay = changed.weight_decay if decays or "weight_decay" in values else 0.0
    options: dict[str, Any] = {"weight_decay": weight_decay, "lr_scale": scale}
    # As a factor, because the engine multiplies each step's rate with it.
    if option.lr is not None and changed.lr is not None:
        options["lr_scale"] = changed.lr / option.lr * scale
        options["lr"] = option.lr * options["lr_scale"]
    options |= {key: getattr(changed, key) for key in values if key not in _RATES}
    return Assignment(parameter.names[0], parameter.param, ", ".join(label), options, why)


def _decays(parameter: Named, option: OptimizerOption) -> tuple[bool, str]:
    # transformers' Trainer also spares norms and biases, but by name, and so T5's
    # `relative_attention_bias.weight`, which is an embedding.
    groups = option.groups
    for pattern in groups.decay:
        if parameter.matched_by(pattern):
            return True, f"decay pattern {pattern}"
    for pattern in groups.no_decay:
        if parameter.matched_by(pattern):
            return False, f"no_decay pattern {pattern}"
    for kind in groups.no_decay_types:
        if _is_of_type(parameter, kind):
            return False, kind
    return True, "decays by default"


def _is_of_type(parameter: Named, kind: str) -> bool:
    match kind:
        case "norm":
            return any(is_norm(owner) for owner in parameter.owners)
        case "bias":
            last = (name.rpartition(".")[2] for name in parameter.names)
            return any(name == "bias" or name.endswith("_bias") for name in last)
        case "embedding":
            return any(issubclass(o, nn.Embedding | nn.EmbeddingBag) for o in parameter.owners)
        case _:
            return len(parameter.shape) < 2


def is_norm(owner: type[nn.Module]) -> bool:
    """Return True for a normalisation layer, by the name of the class or of a base class."""
    return any(_NORM.search(ancestor.__name__) for ancestor in owner.__mro__)


def _layer_scales(named: Sequence[Named], layer_decay: float | None) -> list[tuple[float, str]]:
    if layer_decay is None:
        return [(1.0, "")] * len(named)
    # Blocks count through the whole module, so that a decoder's follow its encoder's. Embeddings
    # count as a block before the first, final norm and head as one after the last.
    blocks: dict[tuple[str | None, str], int] = {}
    found = [_BLOCK.match(parameter.names[0]) for parameter in named]
    for match in found:
        if match:
            blocks.setdefault((match[1], match[2]), len(blocks) + 1)
    if not blocks:
        raise ConfigError(
            [
                Problem(
                    "optimizer.groups.layer_decay",
                    "the model has no numbered blocks; leave it null",
                )
            ]
        )
    scales, passed = [], False
    for match in found:
        passed = passed or match is not None
        depth = blocks[match[1], match[2]] if match else (len(blocks) + 1 if passed else 0)
        where = (
            f"block {depth - 1}"
            if match
            else ("after the blocks" if passed else "before the blocks")
        )
        scales.append((layer_decay ** (len(blocks) + 1 - depth), where))
    return scales


def _check_patterns(named: Sequence[Named], option: OptimizerOption) -> None:
    # A pattern without effect is a misspelt name, and would change what the run learns silently.
    groups = option.groups
    patterns = [
        (f"optimizer.groups.{key}", pattern)
        for key in ("decay", "no_decay", "frozen")
        for pattern in getattr(groups, key)
    ]
    patterns += [
        (f"optimizer.groups.overrides.{place}.pattern", override.pattern)
        for place, override in enumerate(groups.overrides)
    ]
    names = [name for parameter in named for name in parameter.names]
    problems = [
        Problem(
            key, f"{pattern!r} matches no parameter; nearest: {', '.join(nearest(pattern, names))}"
        )
        for key, pattern in patterns
        if not any(parameter.matched_by(pattern) for parameter in named)
    ]
    problems += [
        Problem(key, f"has no effect: all parameters that {pattern!r} matches are frozen")
        for key, pattern in patterns
        if not key.endswith(".frozen")
        and (found := [each for each in named if each.matched_by(pattern)])
        and all(_is_frozen(each, option) for each in found)
    ]
    if problems:
        raise ConfigError(problems)


def _is_frozen(parameter: Named, option: OptimizerOption) -> bool:
    return any(parameter.matched_by(pattern) for pattern in option.groups.frozen)


def nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """Return up to three names of which a part is most similar to the pattern's characters."""
    plain = re.sub(r"[^\w.]|\\.", "", pattern).lower()

    def likeness(name: str) -> float:
        parts = [name, *name.split(".")]
        return max(difflib.SequenceMatcher(None, plain, part.lower()).ratio() for part in parts)

    return sorted(dict.fromkeys(names), key=lambda name: -likeness(name))[:3]
