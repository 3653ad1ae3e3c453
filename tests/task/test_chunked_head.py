"""Cross entropy in chunks: the same numbers, fewer logits in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor

from launcher.config.schema import RunConfig
from launcher.contracts import World
from launcher.errors import ConfigError
from launcher.task import NO_TARGET
from launcher.task._chunked_head import chunk_head
from tests.distributed import run_on_ranks
from tests.levers import counting_saved_bytes, largest_difference, tiny, trained
from tests.networks import small_llama

IDS = torch.arange(60).view(2, 30)
LABELS = IDS.roll(-1, 1).masked_fill(IDS % 7 == 0, NO_TARGET)


def expected(network: Any, dtype: torch.dtype | None) -> Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = network(input_ids=IDS, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), LABELS.flatten(), ignore_index=NO_TARGET, reduction="none"
    ).view_as(LABELS)


def chunked(network: Any, dtype: torch.dtype | None) -> Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses: Tensor = network(input_ids=IDS, use_cache=False, loss_labels=LABELS).logits
    return losses


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_losses_and_gradients_are_those_of_all_logits(
    dtype: torch.dtype | None, *, tied: bool
) -> None:
    torch.manual_seed(0)
    network = small_llama(tie_word_embeddings=tied)
    names = list(network.state_dict())
    gradients = []
    for compute in (expected, chunked):
        if compute is chunked:
            chunk_head(network, 7)
        network.zero_grad()
        losses = compute(network, dtype)
        torch.autograd.backward(losses.sum())
        gradients.append([losses.detach(), *(param.grad for param in network.parameters())])
    tolerance = 1e-6 if dtype is None else 1e-2
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max()
    assert list(network.state_dict()) == names
    # Generation has no targets.
    with torch.no_grad():
        assert network(input_ids=IDS).logits.shape[-1] == 384
        text = network.generate(IDS[:1, :3], max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert text.shape == (1, 6)


def test_fewer_logits_are_kept() -> None:
    sizes = {}
    for tokens in (None, 10):
        network = small_llama(vocab_size=5000)
        if tokens is not None:
            chunk_head(network, tokens)
        with counting_saved_bytes() as saved:
            (expected if tokens is None else chunked)(network, None)
        sizes[tokens] = sum(saved.values())
    assert sizes[None] - sizes[10] > 5000 * IDS.numel() * 4


def gemma2() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return transformers.Gemma2ForCausalLM(config)


def test_logits_that_are_changed_after_the_head_are_refused() -> None:
    network = gemma2()
    refused = r"task.loss_chunk_tokens: must be null.*changes the logits after its head"
    with pytest.raises(ConfigError, match=f"{refused}.*final_logit_softcapping"):
        chunk_head(network, 8)
    # Also where the name of the setting is not known.
    network.config.final_logit_softcapping = None
    chunk_head(network, 8)
    network.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match=refused):
        chunked(network, None)


def on_ranks(configs: list[RunConfig]) -> list[Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    layouts = [config.parallelism.layout(size) for config in configs]
    worlds = [World(rank, size, rank, "cpu", layout) for layout in layouts]
    return [trained(config, world) for config, world in zip(configs, worlds, strict=True)]


def test_stage_3_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.loss_chunk_tokens: must be null under stage 3"):
        tiny("parallelism=zero3", "launch.processes=2", "task.loss_chunk_tokens=5")


def test_a_run_trains_the_same() -> None:
    words = ("task.loss_chunk_tokens=5", "activation=full")
    assert largest_difference(trained(tiny()), trained(tiny(*words))) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "fsdp_grad_op", "zero1", "zero2"])
def test_every_engine_trains_the_same(engine: str, precision: str) -> None:
    shared = (f"parallelism={engine}", "launch.processes=2", f"precision={precision}")
    words = [
        ["task.loss_chunk_tokens=5"],
        ["task.loss_chunk_tokens=5", "model.tie_embeddings=true"],
    ]
    configs = [
        tiny(*shared, *extra) for pair in words for extra in (pair[1:], pair)
    ]  # fmt: skip
    for found in run_on_ranks(on_ranks, configs):
        for without, with_chunks in (found[:2], found[2:]):
            assert largest_difference(without, with_chunks) < 1e-5
