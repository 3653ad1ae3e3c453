"""The small config that `trainctl verify --shrink` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launcher.api import load_config
from launcher.model import build_module
from launcher.task.causal_lm import CausalLM
from launcher.verify.cells import reference_cuts
from launcher.verify.shrink import samples_per_step, shrunk
from launcher.verify.trajectory import without_dropout


def size(config: object) -> int:
    model = config.model  # type: ignore[attr-defined] # a RunConfig
    from launcher.contracts import Head

    return sum(p.numel() for p in build_module(model, Head(CausalLM.head), 0).parameters())


@pytest.mark.parametrize("preset", ["llama", "llama_8b"])
def test_a_small_llama_of_the_same_structure(preset: str, tmp_path: Path) -> None:
    config = load_config([f"model={preset}", "task.seq_len=128"])
    small = shrunk(config, 8, tmp_path)
    assert small.optimizer == config.optimizer
    assert small.task.seq_len == 32
    assert small.max_steps == 32
    assert small.model.kind == "llama"
    vocabulary = small.model.limits().vocab_size
    assert vocabulary == config.model.limits().vocab_size
    assert size(small) < 80 * vocabulary


ARCHITECTURES = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 6,
    },
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 5},
    "qwen3": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_hidden_layers": 4,
    },
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_small_network_of_transformers(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    given = AutoConfig.for_model(architecture, vocab_size=384, **ARCHITECTURES[architecture])
    given.architectures = [f"{architecture.upper()}ForCausalLM"]
    given.save_pretrained(tmp_path / "large")
    words = ["model=hf", f"model.path={tmp_path / 'large'}", "model.tokenizer=byt5"]
    config = load_config([*words, "model.init=random"])
    folder = tmp_path / "small"
    folder.mkdir()
    small = shrunk(config, 8, folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == architecture
    assert size(small) < size(config)


def test_a_schedule_that_does_not_fit_fewer_steps_keeps_its_length(tmp_path: Path) -> None:
    config = load_config(["scheduler.warmup_steps=100"])
    assert shrunk(config, 8, tmp_path).max_steps == config.max_steps


@pytest.mark.parametrize(
    ("batch", "ranks", "accumulations", "expected"),
    [(8, [2], [1, 4], 8), (4, [2], [1, 4], 8), (512, [1, 2, 4], [1, 4], 16), (64, [3], [1], 15)],
)
def test_every_cell_divides_the_batch(
    batch: int, ranks: list[int], accumulations: list[int], expected: int
) -> None:
    words = [f"accumulation.samples_per_step={batch}", "accumulation.micro_batch_size=1"]
    assert samples_per_step(load_config(words), ranks, accumulations) == expected


@pytest.mark.parametrize(
    ("batch", "asked", "expected"),
    [
        (8, [1, 4], (1, 4)),
        (8, [4], (4, 8)),
        (8, [3], (1, 4)),
        (1, [1], (1, None)),
        (6, [3], (3, 6)),
    ],
)
def test_the_cuts_of_the_reference(
    batch: int, asked: list[int], expected: tuple[int, int | None]
) -> None:
    assert reference_cuts(batch, asked) == expected


def test_dropout_is_off() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_dropout = 0.1
            self.scale = 0.5

    module = torch.nn.Sequential(torch.nn.Dropout(0.1), Attention(), torch.nn.Linear(2, 2))
    assert without_dropout(module) == ["0", "1"]
    assert module[0].p == 0
    assert module[1].attention_dropout == 0
    assert module[1].scale == 0.5
