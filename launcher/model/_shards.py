"""Initial weights of shards: no rank has memory for the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import InitialWeights, LocalShard
from launcher.model._initial_weights import initialize_weights, named_tensors, replace_tensors

if TYPE_CHECKING:
    from launcher.contracts import Head, ModelOption


class DrawnWeights(InitialWeights):
    """Weights that are drawn, each from (seed, name): the same whatever part of them is wanted.

    Args:
        option: The network.
        head: Its output layer.
        seed: Seed of the weights.
        plain: The network on the meta device; it is not changed.
    """

    def __init__(self, option: ModelOption, head: Head, seed: int, plain: nn.Module) -> None:
        self._option = option
        self._head = head
        self._seed = seed
        self._plain = plain
        self._first_names: dict[Tensor, str] = {}
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in named_tensors(plain, every=True):
            self._first_names.setdefault(tensor, name)
            self._tensors[name] = tensor

    @override
    @torch.no_grad()
    def fill(self, shards: Mapping[str, LocalShard]) -> None:
        by_owner: dict[str, dict[str, list[LocalShard]]] = {}
        for name, shard in shards.items():
            first = self._first_names[self._tensors[name]]
            owner = by_owner.setdefault(first.rpartition(".")[0], {})
            owner.setdefault(first, []).append(shard)
        for wanted in by_owner.values():
            for name, whole in self._drawn(list(wanted)).items():
                for local in wanted[name]:
                    local.shard.scatter(whole, local.tensor)

    @override
    def check(self, module: nn.Module) -> None:
        self._option.check_module(module, self._head)

    def _drawn(self, names: list[str]) -> Mapping[str, Tensor]:
        """Draw some tensors of a module, and take their memory out of the network again."""
        module = self._plain
        initialize_weights(module, self._seed, tensors=names)
        found = {name: _tensor(module, name) for name in names}
        replace_tensors(module, {found[name]: self._tensors[name] for name in names})
        return {name: tensor.detach() for name, tensor in found.items()}


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), last)
    return found
