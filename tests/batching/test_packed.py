"""Packed rows: full, and every sample as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen2Config,
)

from launcher.batching._packing import best_fit_decreasing, members, positions
from launcher.batching._rows import PackedRows
from launcher.contracts import Samples
from launcher.errors import ConfigError
from launcher.model._tokenizers import ByteTokenizer
from launcher.task._generation import GenerationSettings
from launcher.task._language_model import LanguageModel
from launcher.training.parts import windows_of
from tests.levers import ALONE, built, tiny, trained
from tests.toy.shared import Texts

TEXTS = [
    "abc",
    "a longer text of two",
    "x",
    "some words",
    "another one",
    "yes",
    "the last one here",
]


def task() -> LanguageModel:
    return LanguageModel(
        ByteTokenizer(),
        seq_len=32,
        packing=False,
        generation=GenerationSettings("", 0, 1.0),
    )


def samples() -> Samples:
    return task().samples(Texts(*TEXTS))


def test_rows_are_full_and_every_sample_is_in_one() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 20_000).clip(1, 512).astype(np.int64)
    row_of = best_fit_decreasing(lengths, 512)
    used = np.bincount(row_of, weights=lengths)
    assert used.max() <= 512
    assert used.min() > 0
    assert 1 - lengths.sum() / (512 * len(used)) < 0.003
    order, ends = members(row_of)
    assert sorted(order.tolist()) == list(range(20_000))
    assert (row_of[order[: ends[0]]] == 0).all()


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> int:
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [row for row in range(len(rows)) if rows[row] + length <= capacity]
        if fits:
            rows[max(fits, key=lambda row: rows[row])] += length
        else:
            rows.append(length)
    return len(rows)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_best_fit_decreasing(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 40, size=200)
    row_of = best_fit_decreasing(lengths, 40)
    assert row_of.max() + 1 == first_fit_decreasing(lengths.tolist(), 40)


def test_positions_restart_at_samples_and_at_the_padding() -> None:
    assert positions([3, 1, 2], 9).tolist() == [0, 1, 2, 0, 0, 1, 0, 1, 2]


SIZES = {"vocab_size": 384, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "gemma": GemmaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=8),
    "gpt2": GPT2Config(vocab_size=384, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}


def network(name: str, attention: str) -> Any:
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    for param in built.parameters():  # large enough that a leak would be seen
        torch.nn.init.normal_(param, std=0.3)
    return built.eval()


def losses_and_gradients(module: Any, source: Samples, indices: Sequence[int]) -> Any:
    batch = source.micro_batch(indices, 0)
    live = task()
    module.zero_grad()
    outputs = module(**live.forward_inputs(batch.inputs))
    loss: Any = live.loss(outputs, batch.inputs)
    loss.backward()
    labels = batch.inputs["labels"].flatten()
    each = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1), labels, reduction="none", ignore_index=-100
    )
    grads = torch.cat([param.grad.flatten() for param in module.parameters()])
    return each[labels != -100].detach(), grads


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "eager") for name in CONFIGS),
        *((name, "sdpa") for name in sorted({*CONFIGS} - {"gemma2"})),
    ],
)
def test_losses_and_gradients_are_those_of_samples_apart(name: str, attention: str) -> None:
    module, plain = network(name, attention), samples()
    rows = PackedRows(plain, 32)
    assert len(rows) < len(plain)
    rows.check_isolation(task(), module)
    order = [each for row in range(len(rows)) for each in rows.members(row)]
    found, gradient = losses_and_gradients(module, rows, range(len(rows)))
    expected, reference = losses_and_gradients(module, plain, order)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (gradient - reference).norm() <= 1e-6 * reference.norm()
    assert rows.num_targets(range(len(rows))) == plain.num_targets(range(len(plain)))


@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")  # of transformers
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.slow  # it is compiled
def test_flex_attention_keeps_samples_apart() -> None:
    PackedRows(samples(), 32).check_isolation(task(), network("llama", "flex_attention"))


def test_a_network_that_cannot_keep_samples_apart_is_refused() -> None:
    config = MambaConfig(vocab_size=384, hidden_size=16, num_hidden_layers=1, state_size=4)
    module = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match="MambaForCausalLM"):
        PackedRows(samples(), 32).check_isolation(task(), module)


def test_an_input_per_sample_is_refused() -> None:
    class Labelled(type(samples())):  # type: ignore[misc] # a class of the fixture's
        def micro_batch(self, indices: Sequence[int], draw: int) -> Any:
            found = super().micro_batch(indices, draw)
            return type(found)({**found.inputs, "kind": torch.zeros(len(indices))}, 1, indices)

    plain = samples()
    plain.__class__ = Labelled
    with pytest.raises(ConfigError, match="one value per token, but kind has"):
        PackedRows(plain, 32)


def test_a_run_trains_on_rows() -> None:
    config = tiny("task.packing=false", "batching=packed")
    parts = built(config)
    assert isinstance(parts.train, PackedRows)
    assert not isinstance(parts.validation, PackedRows)
    window = next(windows_of(config, parts, ALONE))
    assert all("position_ids" in each.inputs for each in window.micro_batches)
    parts.engine.close()
    assert len(trained(config).losses) == 3
