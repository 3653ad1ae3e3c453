"""`trainctl checkpoint export`: what the run exported, byte for byte, in the memory of a tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from launcher.checkpoint import SavedCheckpoint, write_parts
from launcher.checkpoint._store import DirectoryStore
from launcher.config.load import load_config
from launcher.contracts import Snapshot, TrainState, World
from launcher.run_dir import RunDir
from launcher.training.exporting import export_checkpoint
from tests.conftest import Console, toy_words
from tests.end_to_end.test_fsdp import on
from tests.end_to_end.test_resume import weights
from tests.kernel_limit import memory_limit

# About 10 MB for each of two matrices: far above what Python allocates meanwhile.
WIDTH = 100_000
SLACK = 1.1


def same_folders(one: Path, other: Path) -> bool:
    files = {path.name for path in one.iterdir()}
    return files == {path.name for path in other.iterdir()} and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


# `fsdp 2` is in test_fsdp.py.
SLOW = [
    "fsdp 3",
    "fsdp_hybrid 4",
    "fsdp_offload 2",
    "zero1 2",
    "zero2 2",
    "zero3 2",
    "zero_offload 2",
]


@pytest.mark.parametrize(
    "engine", ["ddp 2", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_the_export_of_an_engine_is_that_of_one_process(trainctl: Console, engine: str) -> None:
    trainctl.toy()
    run_dir = trainctl.run_dir()
    expected = weights(run_dir)
    shutil.rmtree(run_dir / "export")
    # It finds the run finished, loads the last checkpoint on this engine, and exports.
    trainctl("resume", str(run_dir), *on(engine))
    assert weights(run_dir) == expected


@pytest.mark.parametrize(
    "words",
    [
        on("fsdp 2"),
        ["optimizer=schedule_free_adamw", "scheduler=constant"],
        pytest.param(on("zero3 2"), marks=pytest.mark.slow),
        pytest.param(["precision=bf16_pure"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_checkpoint_is_exported_as_its_run_does(trainctl: Console, words: list[str]) -> None:
    trainctl.toy(*words, "max_steps=5")
    run_dir = trainctl.run_dir()
    trainctl("checkpoint", "export", str(run_dir), "-o", "model")
    assert (trainctl.folder / "model" / "weights.pt").read_bytes() == weights(run_dir)


def test_a_model_of_transformers_with_renamed_weights(trainctl: Console) -> None:
    """Mixtral's experts have other names and shapes in files; its generation config is a file."""
    folder = trainctl.folder / "mixtral"
    config = MixtralConfig(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        max_position_embeddings=64,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.max_new_tokens = 7
    model.to(torch.bfloat16).save_pretrained(folder)
    words = (
        "run name=hf model=hf model.path=mixtral model.init=pretrained model.tokenizer=byt5 "
        "max_steps=1 task.seq_len=16 accumulation=samples accumulation.micro_batch_size=1 "
        "accumulation.samples_per_step=2 final_eval_max_samples=2 optimizer.lr=1e-3 "
        "logging.tensorboard=false task.sample_tokens=0 launch.device=cpu"
    )
    trainctl(*words.split())
    run_dir = trainctl.run_dir("hf")
    assert (run_dir / "export" / "model.safetensors").exists()
    trainctl("checkpoint", "export", str(run_dir), "-o", "model")
    assert same_folders(trainctl.folder / "model", run_dir / "export")
    trainctl("checkpoint", "export", str(run_dir), "-o", "wide", "--dtype", "float32")
    assert json.loads((trainctl.folder / "wide" / "config.json").read_text())["dtype"] == "float32"


def handle_in_little_memory(folder: str) -> None:
    """Save, export and convert a model of two large tensors under a limit of the kernel."""
    run_dir = RunDir(Path(folder))
    config = load_config(toy_words(f"model.width={WIDTH}")).config
    world = World(rank=0, size=1, local_rank=0, device="cpu")
    store = DirectoryStore(run_dir, world, keep=1, asynchronous=False, timeout_s=60)
    tensors = {"0.weight": (26, WIDTH), "2.weight": (26, WIDTH), "2.bias": (26,)}
    engine = {f"model.{name}": torch.rand(shape) for name, shape in tensors.items()}
    snapshot = Snapshot(
        step=1,
        engine=engine,
        train_state=TrainState(step=1).to_json(),
        rng={},
        config=config.to_json(),
        data_fingerprint="",
    )
    largest = max(tensor.nbytes for tensor in engine.values())
    # Once without a limit: what is imported and cached is no memory of the model.
    store.save(snapshot)
    path = run_dir.checkpoint(1)
    export_checkpoint(path, run_dir.path / "first")
    write_parts(SavedCheckpoint(path), run_dir.path / "parts", 1)
    expected = engine["model.0.weight"].clone()
    engine.clear()
    with memory_limit(int(SLACK * largest)):
        export_checkpoint(path, run_dir.path / "export")
        write_parts(SavedCheckpoint(path), run_dir.path / "again", 1)
    with memory_limit(largest // 2), pytest.raises((MemoryError, RuntimeError)):
        SavedCheckpoint(path).read(["model.0.weight"])
    found = torch.load(run_dir.path / "export" / "weights.pt", weights_only=True)
    assert torch.equal(found["0.weight"], expected)
    assert (run_dir.path / "again" / "state" / "__0_0.distcp").stat().st_size > 2 * largest


def test_the_largest_tensor_is_all_that_takes_memory(trainctl: Console) -> None:
    folder = trainctl.folder / "run"
    folder.mkdir()
    trainctl.call(handle_in_little_memory, str(folder))
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]
