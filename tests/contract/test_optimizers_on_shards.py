"""No kind of optimizer takes shards for tensors: it can update them, or it refuses them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from launcher.contracts import OptimizerTarget, Shard
from launcher.errors import ConfigError
from tests.contract.test_optimizers import PRESETS, build, distance, network, packaged


class Half:
    """The sharding of the rank that holds the first half of every flattened parameter."""

    rank = 0
    ranks = 2

    def __init__(self, wholes: Mapping[Tensor, tuple[str, torch.Size]]) -> None:
        self._wholes = wholes

    def shard_of(self, param: Tensor) -> Shard:
        """Return the first half of the whole parameter."""
        name, shape = self._wholes[param]
        return Shard.flat_range(name, shape, 0, param.numel())

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        """Fail: an elementwise optimizer has no sums."""
        raise AssertionError(f"an elementwise optimizer adds up {sorted(sums)}")


def halved() -> tuple[nn.Module, Half]:
    module = network()
    wholes: dict[Tensor, tuple[str, torch.Size]] = {}
    halves: dict[Tensor, nn.Parameter] = {}
    for owner_name, owner in module.named_modules():
        for last, param in list(owner.named_parameters(recurse=False)):
            if param not in halves:
                flat = param.detach().reshape(-1)
                halves[param] = nn.Parameter(flat[: -(-len(flat) // 2)].clone())
                wholes[halves[param]] = (f"{owner_name}.{last}", param.shape)
            setattr(owner, last, halves[param])
    return module, Half(wholes)


@pytest.mark.parametrize("preset", PRESETS)
def test_shards_are_refused_or_updated_like_tensors(preset: str) -> None:
    option, whole = packaged(preset), network()
    reference = build(option, whole)
    module, sharding = halved()
    target = OptimizerTarget(module, "cpu", sharding)
    if option.refuses_shards():
        with pytest.raises(ConfigError, match=f"{option.kind} cannot update shards"):
            option.build(target)
        return
    optimizer = option.build(target)
    names = [[group["name"] for group in each.param_groups] for each in (optimizer, reference)]
    assert names[0] == names[1]
    if not option.elementwise:
        return  # Its sums need real ranks: tests/optimizer/test_shards.py.
    for _ in range(6):
        distance(whole).backward()  # type: ignore[no-untyped-call]
        for param, local in zip(whole.parameters(), module.parameters(), strict=True):
            assert param.grad is not None
            local.grad = param.grad.reshape(-1)[: local.numel()].clone()
        for each in (reference, optimizer):
            each.step()
            each.zero_grad(set_to_none=True)
    for param, local in zip(whole.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(local, param.reshape(-1)[: local.numel()], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("preset", PRESETS)
def test_groups_have_unique_names(preset: str) -> None:
    groups = build(packaged(preset), network()).param_groups
    assert len({group["name"] for group in groups}) == len(groups)
