"""Training, resume and export of adapters, compared with peft in a hand-written loop."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import Layout, World
from launcher.errors import CheckpointError
from launcher.run_dir import RunDir
from launcher.training.batches import Windows
from launcher.training.parts import read_data
from launcher.training.runner import Outcome, load_model, run
from tests.distributed import run_on_ranks
from tests.networks import small_llama

# Warnings of peft, in the hand-written loop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),
]

WORLD = World(rank=0, size=1, local_rank=0, device="cpu", layout=Layout())
LR = 5e-3
SIZES = {"vocab_size": 384, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
FAMILIES: dict[str, Any] = {
    "llama": small_llama,
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, intermediate_size=32, num_key_value_heads=1, max_window_layers=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=384,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=1,
            # Every draw of a mask differs between two programs.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ),
}


@pytest.fixture
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    FAMILIES[getattr(request, "param", "llama")]().save_pretrained(folder)
    return folder


def config_of(base: Path, *words: str) -> RunConfig:
    """A run of 30 steps on a local model."""
    return load_config(
        [
            "model=hf",
            f"model.path={base}",
            "model.tokenizer=byt5",
            "adapter=lora",
            "adapter.rank=4",
            "task.seq_len=32",
            "task.sample_tokens=0",
            "accumulation.micro_batch_size=2",
            "accumulation.samples_per_step=4",
            "scheduler=constant",
            f"optimizer.lr={LR}",
            "max_grad_norm=null",
            "max_steps=30",
            "eval_every_steps=null",
            "final_eval_max_samples=2",
            "log_every_steps=1",
            "logging=quiet",
            "checkpoint.every_steps=null",
            *words,
        ]
    ).config


def start(config: RunConfig, folder: Path, world: World = WORLD) -> Outcome:
    folder.mkdir(exist_ok=True)
    return run(config, RunDir(folder), world, lambda: None, lambda *_: None)


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def windows(config: RunConfig) -> Iterator[Any]:
    from launcher.config import derive

    samples = read_data(config).train
    plan = derive.batch_plan(config)
    return iter(
        Windows(samples, plan, config.batching, seed=config.seed, data_rank=0, start=0, stop=None)
    )


def trained_by_peft(config: RunConfig, base: Path, **changes: Any) -> tuple[Any, list[float]]:
    """Train with peft and torch alone, on the same batches."""
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", **changes)
    torch.manual_seed(config.seed)
    adapted: Any = get_peft_model(model, lora)
    chosen: Any = config.optimizer
    optimizer = torch.optim.AdamW(
        [param for param in adapted.parameters() if param.requires_grad],
        lr=LR,
        betas=chosen.betas,
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
    )
    found = []
    for window in islice(windows(config), config.max_steps):
        total = torch.zeros(())
        for micro_batch in window.micro_batches:
            inputs = micro_batch.inputs
            logits = adapted(input_ids=inputs["input_ids"]).logits
            summed = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), inputs["labels"].flatten(), reduction="sum"
            )
            loss = summed / window.num_targets
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        found.append(total.item())
    return adapted.eval(), found


@pytest.mark.parametrize(
    ("base", "words", "changes"),
    [
        ("llama", (), {}),
        ("qwen2", ("adapter.dora=true",), {"use_dora": True}),
        ("gpt2", ("adapter.init=pissa",), {"init_lora_weights": "pissa"}),
    ],
    indirect=["base"],
)
def test_training_equals_peft_and_the_exports_load(
    base: Path, tmp_path: Path, words: tuple[str, ...], changes: dict[str, Any]
) -> None:
    config = config_of(base, "adapter.export=both", *words)
    start(config, tmp_path / "run")
    theirs, expected = trained_by_peft(config, base, **changes)
    ours = losses(tmp_path / "run")
    assert len(ours) == 30
    assert ours == pytest.approx(expected, abs=1e-5)
    assert ours[-1] < ours[0]

    ids = torch.arange(40).remainder(384).view(2, 20)
    export = tmp_path / "run" / "export"
    live = load_model(config, tmp_path / "run/checkpoints/step-00000030")
    merged = AutoModelForCausalLM.from_pretrained(export)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), export / "adapter"
    ).eval()
    with torch.no_grad():
        logits = live(input_ids=ids).logits
        for each in (theirs, merged, loaded):
            assert (each(input_ids=ids).logits - logits).abs().max() < 1e-4
        untrained = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
    assert (untrained - logits).abs().max() > 0.1


def test_a_checkpoint_has_only_the_adapter_and_resumes_bitwise(base: Path, tmp_path: Path) -> None:
    words = ("adapter.dropout=0.1", "adapter.lr_ratio=4", "adapter.init=pissa", "max_steps=6")
    whole, parts = config_of(base, *words), config_of(base, *words, "max_steps=3")
    start(whole, tmp_path / "whole")
    start(parts, tmp_path / "parts")
    start(whole, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, second = (
        load_file(tmp_path / name / "export/adapter/adapter_model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert {name.split(".")[-2] for name in first} == {"lora_A", "lora_B"}
    state = FileSystemReader(tmp_path / "whole/checkpoints/step-00000006/state").read_metadata()
    weights = [name for name in state.state_dict_metadata if name.startswith("model.")]
    assert all(re.search(r"_proj\.lora_[AB]\.weight$", name) for name in weights)
    assert len(weights) == len(first) == 14


def test_another_base_model_is_refused(base: Path, tmp_path: Path) -> None:
    start(config_of(base, "max_steps=1"), tmp_path / "run")
    small_llama().save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"base model have changed.*model\.safetensors"):
        start(config_of(base, "max_steps=2"), tmp_path / "run")


def test_qlora_equals_peft(base: Path, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    words = ("adapter=qlora", "adapter.rank=4", "adapter.compute_dtype=float32", "max_steps=5")
    config = config_of(base, *words)
    start(config, tmp_path / "run")
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    quantized = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=four_bit, device_map="cpu"
    )
    live = load_model(config, tmp_path / "run/checkpoints/step-00000005")
    loaded = PeftModel.from_pretrained(quantized, tmp_path / "run/export/adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/export")
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        logits = live(input_ids=ids).logits
        for each in (loaded, merged):
            assert (each(input_ids=ids).logits - logits).abs().max() < 1e-4
    types = {type(part).__name__ for part in live.modules()}
    assert "Linear4bit" in types


def on_ranks(base: str, folder: str, engines: list[str]) -> list[list[float]]:
    import torch.distributed as dist

    found = []
    for engine in engines:
        words = (f"parallelism={engine}", "launch.processes=2", "max_steps=4")
        config = config_of(Path(base), *words, "accumulation.micro_batch_size=1")
        layout = config.parallelism.layout(2)
        world = World(rank=dist.get_rank(), size=2, local_rank=0, device="cpu", layout=layout)
        run_dir = Path(folder) / engine
        start(config, run_dir, world)
        dist.barrier()
        found.append(losses(run_dir))
    return found


def check_engines(base: Path, tmp_path: Path, engines: list[str]) -> None:
    start(config_of(base, "max_steps=4"), tmp_path / "single")
    alone = load_file(tmp_path / "single/export/adapter/adapter_model.safetensors")
    found, _ = run_on_ranks(on_ranks, str(base), str(tmp_path), engines)
    for engine, values in zip(engines, found, strict=True):
        assert values == pytest.approx(losses(tmp_path / "single"), abs=1e-5)
        own = load_file(tmp_path / engine / "export/adapter/adapter_model.safetensors")
        assert all((own[name] - value).abs().max() < 1e-4 for name, value in alone.items())


def test_ddp_trains_the_same_adapter(base: Path, tmp_path: Path) -> None:
    check_engines(base, tmp_path, ["ddp"])


@pytest.mark.slow
def test_sharded_engines_train_the_same_adapter(base: Path, tmp_path: Path) -> None:
    check_engines(base, tmp_path, ["fsdp", "fsdp_offload", "zero1", "zero2", "zero3"])
