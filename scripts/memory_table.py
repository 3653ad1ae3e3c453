"""Writes the table of docs/memory.md: `python scripts/memory_table.py`.

Predicted by `trainctl plan`, and measured by counting the bytes of all live tensors in real steps
of the engine on a CPU. Kernels' own memory is in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import Layout, Request, World
from launcher.plan import LiveBytes, Planner
from launcher.training import rng
from launcher.training.batches import Windows
from launcher.training.parts import build

TABLE = Path(__file__).resolve().parents[1] / "docs" / "memory.md"
BASE = [
    "launch.device=cpu",
    "model.hidden_size=64",
    "model.intermediate_size=160",
    "model.num_layers=4",
    "task.seq_len=64",
    "accumulation.samples_per_step=8",
    "logging=quiet",
    "checkpoint=none",
]
CASES: dict[str, list[str]] = {
    "adamw, fp32": [],
    "micro-batch 2 of 8": ["accumulation.micro_batch_size=2"],
    "activation=full": ["activation=full"],
    "activation=selective": ["activation=selective"],
    "activation=every_n": ["activation=every_n"],
    "bf16": ["precision=bf16"],
    "bf16, activation=full": ["precision=bf16", "activation=full"],
    "bf16_pure": ["precision=bf16_pure"],
    "adafactor": ["optimizer=adafactor"],
    "muon": ["optimizer=muon"],
    "sgd": ["optimizer=sgd"],
    "adamw_8bit": ["optimizer=adamw_8bit"],
    "8 layers": ["model.num_layers=8"],
    "vocabulary of 8,192": ["model.vocab_size=8192"],
    "adapter=lora": ["adapter=lora", "adapter.rank=4"],
    "adapter=lora, activation=full": ["adapter=lora", "adapter.rank=4", "activation=full"],
}
HEAD = """# Memory: predicted and measured

`trainctl plan` predicts the peak of a rank without allocating weights. The table compares it with
the bytes of all live tensors in real training steps on a CPU: the peak of the second step, with
weights, buffers, optimizer state, gradients and activations, for a small Llama. What kernels
allocate
inside is in neither number. Written by `scripts/memory_table.py`.

| Config | Predicted, MB | Measured, MB | Error |
|---|---:|---:|---:|
"""


def config_of(words: Sequence[str]) -> RunConfig:
    return load_config([*BASE, *words]).config


def predicted(config: RunConfig) -> int:
    """Bytes of the training step."""
    return sum(Planner().plan(config).phases["step"].values())


def measured(config: RunConfig) -> int:
    """Bytes of all live tensors at the peak of the second step."""
    world = World(rank=0, size=1, local_rank=0, device="cpu", layout=Layout())
    rng.seed_everything(0)
    parts = build(config, world, lambda: Request.NONE)
    engine: Any = parts.engine
    windows = iter(
        Windows(parts.train, parts.plan, config.batching, seed=0, data_rank=0, start=0, stop=None)
    )
    engine.forward_backward(next(windows))
    engine.update(1e-3)
    module = parts.module
    held = [*module.parameters(), *module.buffers()]
    for state in engine.optimizer.state.values():
        held += [value for value in state.values() if isinstance(value, torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    window = next(windows)
    live = LiveBytes()
    for tensor in held:
        live.ignore(tensor)
    with live:
        engine.forward_backward(window)
        engine.update(1e-3)
    engine.close()
    return sum(storages.values()) + live.peak


def main() -> None:
    rows = []
    for name, words in CASES.items():
        config = config_of(words)
        guess, real = predicted(config), measured(config)
        rows.append(f"| {name} | {guess / 1e6:.2f} | {real / 1e6:.2f} | {guess / real - 1:+.1%} |")
        print(rows[-1], flush=True)
    TABLE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
