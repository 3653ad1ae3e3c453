"""Initial weights of shards are parts of those of the whole model."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from launcher.config.load import load_config
from launcher.contracts import Head, LocalShard, ModelOption, Shard
from launcher.model import build_meta_module, build_module

HEAD = Head("causal_lm")
SMALL = ["hidden_size=16", "intermediate_size=24", "num_layers=2", "num_heads=2", "num_kv_heads=1"]


def llama(*words: str) -> ModelOption:
    sizes = [f"model.{word}" for word in (*SMALL, *words)]
    return load_config(["model=llama", *sizes]).config.model


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_any_part_is_that_of_the_whole_model(tied: str) -> None:
    option = llama(f"tie_embeddings={tied}")
    whole = tensors(build_module(option, HEAD, seed=3))
    module, weights = build_meta_module(option, HEAD, seed=3)
    assert weights is not None
    assert {name: t.shape for name, t in tensors(module).items()} == {
        name: t.shape for name, t in whole.items()
    }
    for start, stop in ((0.0, 0.4), (0.4, 1.0), (0.3, 0.3)):
        shards = {}
        for name, tensor in whole.items():
            first, last = int(start * tensor.numel()), int(stop * tensor.numel())
            shard = Shard.flat_range(name, tensor.shape, first, last - first)
            shards[name] = LocalShard(torch.full((last - first,), torch.nan), shard)
        weights.fill(shards)
        for name, local in shards.items():
            expected = torch.empty_like(local.tensor)
            local.shard.scatter(whole[name].detach(), expected)
            assert torch.equal(local.tensor, expected), name
    assert all(t.is_meta for t in tensors(module).values())


def test_the_order_and_the_choice_of_tensors_do_not_matter() -> None:
    option = llama()
    whole = tensors(build_module(option, HEAD, seed=3))
    _, weights = build_meta_module(option, HEAD, seed=3)
    assert weights is not None
    for name in reversed(whole):
        local = torch.empty_like(whole[name])
        weights.fill({name: LocalShard(local, Shard.whole(name, local.shape))})
        assert torch.equal(local, whole[name]), name
