from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from launcher.contracts import Head, ModelLimits
from launcher.errors import DataError
from launcher.model import build_module
from launcher.model.llama import Llama

CAUSAL_LM = Head("causal_lm")
CONF = Path(__file__).parents[2] / "conf" / "model"


def llama(preset: str = "llama", **changes: Any) -> Llama:
    values = yaml.safe_load((CONF / f"{preset}.yaml").read_text(encoding="utf-8"))
    return Llama.model_validate_json(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("llama_60m", 59_981_440),
        ("llama_160m", 162_198_400),
        ("llama_400m", 397_528_320),
        # The published models have as many.
        ("llama_1b", 1_235_814_400),
        ("llama_3b", 3_212_749_824),
        ("llama_8b", 8_030_261_248),
    ],
)
def test_presets_are_as_large_as_they_say(preset: str, parameters: int) -> None:
    module = llama(preset).build(CAUSAL_LM, "meta")
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_the_presets_in_the_table_are_all() -> None:
    names = {path.stem for path in CONF.glob("llama*.yaml")}
    assert names == {
        "llama",
        *(f"llama_{size}" for size in ("60m", "160m", "400m", "1b", "3b", "8b")),
    }


def test_weights_come_from_the_seed_in_float32() -> None:
    weights = []
    for seed in (1, 1, 2):
        module = build_module(llama(), CAUSAL_LM, seed)
        assert module.training
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        weights.append(torch.cat([p.flatten() for p in module.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_other_heads_are_those_of_transformers() -> None:
    module: Any = build_module(llama(), Head("sequence_classification", ("no", "yes", "?")), 0)
    assert type(module).__name__ == "LlamaForSequenceClassification"
    assert module.score.weight.shape[0] == 3
    assert module.config.id2label == {0: "no", 1: "yes", 2: "?"}
    with pytest.raises(
        DataError, match=r"llama has no masked_lm head.*: causal_lm, sequence_class"
    ):
        llama().build(Head("masked_lm"), "meta")


def test_every_field_reaches_transformers() -> None:
    option = llama(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        max_positions=77,
        rope_theta=123.0,
        norm_eps=0.25,
        init_std=0.5,
        tie_embeddings=True,
        attention="auto",
    )
    module: Any = build_module(option, CAUSAL_LM, 0)
    config = module.config
    assert config.eos_token_id == option.build_tokenizer().eos_id
    assert config.rope_parameters["rope_theta"] == 123.0
    assert config.max_position_embeddings == 77
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert module.lm_head.weight.shape == (400, 32)
    assert abs(module.lm_head.weight.std().item() - 0.5) < 0.02
    layer = module.model.layers[2]
    assert len(module.model.layers) == 3
    assert layer.mlp.up_proj.weight.shape == (48, 32)
    assert layer.self_attn.k_proj.weight.shape == (16, 32)
    assert layer.input_layernorm.variance_epsilon == 0.25
    assert option.limits() == ModelLimits(vocab_size=400, max_positions=77)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30}, "hidden_size must be a multiple of 2 x num_heads"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads"),
        ({"vocab_size": 256}, "vocab_size must be at least 384 for tokenizer byt5"),
        ({"num_layers": 0}, "greater than 0"),
        ({"num_layers": True}, "valid integer"),
        ({"num_layer": 1}, "Extra inputs"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        llama(**changes)


def test_preflight_looks_at_the_tokenizer(tmp_path: Path, bpe_folder: Path) -> None:
    llama().preflight()
    llama(tokenizer=str(bpe_folder)).preflight()
    with pytest.raises(DataError, match="there is no such folder"):
        llama(tokenizer=str(tmp_path / "nowhere")).preflight()


def test_building_prints_nothing() -> None:
    code = (
        "import sys; from launcher.contracts import Head; from launcher.model.llama import Llama;"
        "Llama.model_validate_json(sys.argv[1]).build(Head('causal_lm'), 'cpu');"
        "print('deepspeed' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, llama().model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
