"""Pretrained weights of shards: parts of those that are loaded whole, and no more memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, MixtralConfig, MixtralForCausalLM

from launcher.contracts import Head, LocalShard, Shard
from launcher.model import build_meta_module, build_module
from tests.fork_server import call
from tests.kernel_limit import memory_limit
from tests.model.test_hf import hf, small_gpt2
from tests.model.test_sharded_weights import tensors
from tests.networks import small_llama

CAUSAL_LM = Head("causal_lm")
CLASSES = Head("sequence_classification", ("bad", "good"))
SMALL = {
    "vocab_size": 384,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 50,
}


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2))


def bert() -> Any:
    return BertForMaskedLM(BertConfig(**SMALL))


def tied() -> Any:
    return small_llama(tie_word_embeddings=True)


@pytest.mark.parametrize(
    ("make", "head", "max_shard_size"),
    [
        (tied, CAUSAL_LM, "50GB"),
        (small_llama, CAUSAL_LM, "10KB"),
        (small_gpt2, CAUSAL_LM, "50GB"),
        (bert, Head("masked_lm"), "50GB"),
        # Without the old head, with a new one.
        (small_llama, CLASSES, "50GB"),
    ],
)
def test_any_part_is_that_of_the_loaded_model(
    tmp_path: Path, make: Callable[[], Any], head: Head, max_shard_size: str
) -> None:
    make().to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    option = hf(tmp_path, tokenizer="byt5")
    whole = tensors(build_module(option, head, seed=3))
    module, weights = build_meta_module(option, head, seed=3)
    assert weights is not None
    assert all(tensor.is_meta for tensor in tensors(module).values())
    assert tensors(module).keys() == whole.keys()
    for start, stop in ((0.0, 0.4), (0.4, 1.0), (0.3, 0.3)):
        shards = {}
        for name, tensor in whole.items():
            first, last = int(start * tensor.numel()), int(stop * tensor.numel())
            shard = Shard.flat_range(name, tensor.shape, first, last - first)
            local = torch.full((last - first,), -1, dtype=tensor.dtype)
            shards[name] = LocalShard(local, shard)
        weights.fill(shards)
        for name, held in shards.items():
            expected = torch.empty_like(held.tensor)
            held.shard.scatter(whole[name].detach(), expected)
            assert torch.equal(held.tensor, expected), name


def test_weights_that_files_have_in_another_form_are_loaded_whole(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path)
    module, weights = build_meta_module(hf(tmp_path, tokenizer="byt5"), CAUSAL_LM, seed=3)
    assert weights is None
    assert not any(param.is_meta for param in module.parameters())


def test_old_names_are_not_taken_for_missing_weights(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma"): t
        for name, t in load_file(file).items()
    }
    save_file(old, file, {"format": "pt"})
    option, head = hf(tmp_path, tokenizer="byt5"), Head("masked_lm")
    module, weights = build_meta_module(option, head, seed=3)
    expected = tensors(build_module(option, head, seed=3))
    assert weights is None
    assert all(torch.equal(t, expected[name]) for name, t in tensors(module).items())


def fill_a_quarter(folder: str) -> None:
    """Fill a rank's shards of a model of 41 MB, with a tenth more than one shard in its file."""
    option = hf(Path(folder), tokenizer="byt5")
    module, weights = build_meta_module(option, CAUSAL_LM, seed=3)
    assert weights is not None
    shards = {}
    for name, tensor in tensors(module).items():
        rows = len(tensor) // 4
        shard = Shard.slice_of(name, tensor.shape, 0, rows, 2 * rows)
        shards[name] = LocalShard(torch.zeros(rows, *tensor.shape[1:]), shard)
    # Once without a limit: buffers of the library are no memory of the model.
    small = "model.norm.weight"
    weights.fill({small: shards[small]})
    largest = max(local.tensor.nbytes for local in shards.values()) // 2
    with memory_limit(int(1.1 * largest)):
        weights.fill(shards)
    with memory_limit(largest // 2), pytest.raises((MemoryError, RuntimeError)):
        torch.zeros(largest, dtype=torch.uint8)
    saved = load_file(Path(folder, "model.safetensors"))
    for name, local in shards.items():
        if name in saved:
            (box,) = local.shard.boxes
            assert torch.equal(local.tensor, saved[name][box.slices].float()), name


def test_a_rank_has_memory_for_its_shards_only(tmp_path: Path) -> None:
    model = small_llama(vocab_size=160_000, hidden_size=64, tie_word_embeddings=True)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    call(fill_a_quarter, str(tmp_path), cwd=tmp_path, env=os.environ)
