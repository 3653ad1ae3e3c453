"""Activation options: the same numbers, less memory, the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from typing_extensions import override

from launcher.activation._host_memory import HostMemory, Offloaded
from launcher.config.rules import broken
from launcher.config.schema import RunConfig
from launcher.contracts import ActivationOption, World
from launcher.errors import ConfigError
from launcher.parallelism._local_parameters import with_parameters
from tests.contract.witness import option_of, preset, presets
from tests.distributed import run_on_ranks
from tests.levers import Operations, counting_saved_bytes, tiny, trained
from tests.networks import small_llama

PRESETS = sorted({*presets("activation")} - {"none"})
IDS = torch.arange(48).view(2, 24)


def option(name: str, **changes: Any) -> ActivationOption:
    found = option_of("activation", preset("activation", name) | changes)
    assert isinstance(found, ActivationOption)
    return found


def gpt2() -> Any:
    """With dropout, which must draw the same masks again."""
    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 4, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, **sizes)).train()


def gradients(network: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = network(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return [loss, *(param.grad for param in network.parameters())]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_are_those_without(dtype: torch.dtype | None) -> None:
    expected = gradients(gpt2(), dtype)
    variants = [option(name) for name in PRESETS]
    variants += [option("offload", min_bytes=0), option("offload", recompute=True, min_bytes=0)]
    variants += [option("full", save=["aten.addmm"]), option("full", blocks=[r"h\.[12]$"])]
    for variant in variants:
        network = gpt2()
        names = list(network.state_dict())
        variant.apply(network)
        assert list(network.state_dict()) == names
        found = gradients(network, dtype)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), variant


def saved_bytes(found: ActivationOption) -> int:
    network = small_llama(num_hidden_layers=4)
    found.apply(network)
    with counting_saved_bytes() as saved:
        network(input_ids=IDS, labels=IDS, use_cache=False)
    return sum(saved.values())


def test_less_is_kept() -> None:
    kept, some, least = (saved_bytes(option(name)) for name in ("none", "every_n", "full"))
    assert least < some < kept
    # Two of four blocks.
    assert abs(2 * some - kept - least) < 0.02 * kept


def test_kept_operations_are_not_computed_again() -> None:
    counts = {}
    for name, save in (("none", None), ("full", []), ("full", ["matmul"]), ("selective", None)):
        network = small_llama()
        option(name, **({} if save is None else {"save": save})).apply(network)
        with Operations() as operations:
            gradients(network)
        found = operations.counts
        attention = sum(count for key, count in found.items() if "dot_product" in key)
        counts[name, str(save)] = found["aten.mm.default"], attention
    kept, full, matmul, selective = counts.values()
    # A backward pass needs the inputs of a matrix product, but not the result of the last one.
    assert full[0] > matmul[0] == selective[0] == kept[0]
    assert full[1] == matmul[1] > selective[1] == kept[1]


def test_a_copy_of_the_module_computes_with_its_own_weights() -> None:
    for name in PRESETS:
        network = gpt2()
        option(name).apply(network)
        zeros = {p: nn.Parameter(torch.zeros_like(p)) for p in network.parameters()}
        copy = with_parameters(network, zeros)
        assert not copy(input_ids=IDS, use_cache=False).logits.any()


def test_tensors_are_freed_with_their_graph() -> None:
    made: list[Any] = []

    class Watched(HostMemory):
        @override
        def begin(self, block: nn.Module) -> Any:
            made.append(super().begin(block))
            return made[-1]

    network = gpt2()
    option("offload").apply(network)
    for block in network.transformer.h:
        assert isinstance(block, Offloaded)
        type(block).host = Watched(0, pin_memory=False)
    loss = network(input_ids=IDS, labels=IDS, use_cache=False).loss
    assert all(passed._living() for passed in made)
    loss.backward()
    assert not any(passed._living() for passed in made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save": ["atention.x"]}, r"activation.save\[0\]: must be matmul, attention"),
        ({"blocks": ["nothing"]}, r"activation.blocks\[0\]: 'nothing' matches no module"),
    ],
)
def test_what_is_not_there_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        option("full", **changes).apply(small_llama())


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"activation.blocks: must name the blocks"):
        option("full").apply(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3)))


def on_ranks(configs: list[RunConfig]) -> list[Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    layouts = [config.parallelism.layout(size) for config in configs]
    worlds = [World(rank, size, rank, "cpu", layout) for layout in layouts]
    return [trained(config, world) for config, world in zip(configs, worlds, strict=True)]


def compared(engine: str, name: str, *words: str) -> None:
    shared = (f"parallelism={engine}", "launch.processes=2", *words)
    smallest = ["activation.min_bytes=0"] if name == "offload" else []
    configs = [tiny(*shared), tiny(*shared, f"activation={name}", *smallest)]
    assert not broken(configs[1])
    for expected, found in run_on_ranks(on_ranks, configs):
        assert found.losses == expected.losses
        assert found.norms == expected.norms
        assert found.score == expected.score
        assert all(torch.equal(found.weights[k], v) for k, v in expected.weights.items())


def test_sharded_blocks_are_recomputed() -> None:
    compared("fsdp", "full")


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "fsdp_grad_op", "zero1", "zero2", "zero3"])
def test_every_engine_trains_the_same(engine: str, precision: str, name: str) -> None:
    compared(engine, name, f"precision={precision}")
