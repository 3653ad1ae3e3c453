"""The shards of a thousand ranks, built in one process on torch's fake process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from launcher.blocks import sharded_blocks
from launcher.cli.params import meta_module
from launcher.config.load import load_config

RANKS = 1024
SMALL = (
    "model.hidden_size=64 model.intermediate_size=96 model.num_layers=2 model.num_heads=4 "
    "model.num_kv_heads=2"
)


@contextmanager
def fake_world(rank: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded_bytes(module: nn.Module) -> int:
    """Shard a module as the engine does; return the bytes of this rank."""
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("dp_shard",))
    for block in sharded_blocks(module, None, "parallelism.wrap").values():
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    params = [param for param in module.parameters() if isinstance(param, DTensor)]
    assert len(params) == len(list(module.parameters()))
    return sum(param.to_local().nbytes for param in params)


@pytest.mark.parametrize(
    "words",
    [
        ["model=llama", *SMALL.split()],
        pytest.param(["model=llama_8b"], marks=pytest.mark.slow),
    ],
    ids=["small", "llama_8b"],
)
def test_the_bytes_of_each_of_a_thousand_ranks(words: list[str]) -> None:
    config = load_config([*words, "optimizer.lr=1e-4"]).config
    fsdp = load_config(["parallelism=fsdp"]).config.parallelism
    module = meta_module(config)
    held = fsdp.parameter_bytes(module, RANKS)
    assert len(held) == RANKS
    assert sum(held) == sum(param.nbytes for param in module.parameters())
    # Of an uneven cut the first rank has most, the last one least.
    for rank in (0, RANKS - 1):
        with fake_world(rank):
            assert sharded_bytes(meta_module(config)) == held[rank]


def test_replicas_hold_the_same() -> None:
    config = load_config(["model=llama", *SMALL.split()]).config
    hybrid = load_config(["parallelism=fsdp_hybrid", "launch.processes=4"]).config.parallelism
    first, second, *others = hybrid.parameter_bytes(meta_module(config), 4)
    assert [first, second] == others
    single = load_config([]).config.parallelism
    assert single.parameter_bytes(meta_module(config), 1) == [first + second]


def test_zero_pads_each_parameter_to_equal_parts() -> None:
    module = nn.Linear(3, 5)
    for preset, expected in (("zero2", 20 * 4), ("zero3", (8 + 3) * 4)):
        option = load_config([f"parallelism={preset}", "launch.processes=2"]).config.parallelism
        assert option.parameter_bytes(module, 2) == [expected] * 2
