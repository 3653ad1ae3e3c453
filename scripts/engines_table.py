"""Writes docs/engines.md: how far each engine is from one process, by `trainctl verify`.

    python scripts/engines_table.py                  # everything, one or two minutes per column
    python scripts/engines_table.py adamw "lion"     # these columns; others from docs/engines.json
    python scripts/engines_table.py --write          # the tables only, from docs/engines.json

On two ranks of one machine, and on four for replicas of shards; with a small network, short samples
of unequal length and clipping.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "engines.json"
PAGE = ROOT / "docs" / "engines.md"
OPTIMIZERS = (
    "adamw",
    "adafactor",
    "adafactor_t5",
    "stable_adamw",
    "sgd",
    "lion",
    "lamb",
    "muon",
)
WORDS = ("--shrink", "--accumulation=1,4", "--steps=8", "task.packing=false")
WORLDS = (("--engines=all", "--ranks=2"), ("--engines=fsdp_hybrid", "--ranks=4"))
"""Replicas of shards need four ranks."""
ONE_OF_EACH = (("--engines=ddp,fsdp,zero2,zero3,accelerate", "--ranks=2"),)
"""Engines of the rows that compare models, not optimizers."""
NETWORKS = {
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "mixtral": {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
    },
}
"""Tiny networks of transformers with random weights: config.json by name."""
FORMATS = [f"{name} {word}" for name in ("adamw", "adafactor") for word in ("fp64", "bf16", "fp16")]
TABLES = {
    "Optimizers": OPTIMIZERS,
    "Number formats": FORMATS,
    "Networks of transformers": [f"sgd {name}" for name in NETWORKS],
}
"""Columns by table: an optimizer, with a number format or a network where it is not the usual."""
INTRO = """# Engines compared with one process

Written by `python scripts/engines_table.py` from `trainctl verify {words}`
on two ranks, and on four for fsdp_hybrid; do not edit. {steps} steps, gradient clipping on, samples
of unequal length; float32 and a small Llama, if the column does not say otherwise. A cell shows the
largest relative deviation from one process of loss / gradient norm / any parameter. Three times the
floor is allowed (the deviation of a second cut in one process), and at least 1e-6 / 1e-6 / 1e-5 in
float32, 1e-8 in float64, and 1e-3 / 1e-3 / 1e-2 with 16-bit matrix products. a1 and a4: 1 and 4
micro-batches per rank. mixtral is without its auxiliary loss, which is computed for each
micro-batch and so depends on the cut. T5 and BERT wait for tasks other than the prediction of the
next token. muon, which orthogonalises in bfloat16, and sgd with the rate of its preset amplify
rounding so much that the floor of one second cut is too small for some of their cells.

Versions: {versions}.
"""


def main(words: list[str]) -> int:
    """Verify what was asked for, and write the tables of everything."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    every = [column for columns in TABLES.values() for column in columns]
    asked = [] if words == ["--write"] else words or every
    for column in asked:
        results[column] = verified(column)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
        wrong = [cell for cell in results[column]["cells"] if is_wrong(cell)]
        print(f"{column}: {len(results[column]['cells'])} cells, {len(wrong)} wrong", flush=True)
    PAGE.write_text(page(results), "utf-8")
    return 0


def verified(column: str) -> dict[str, Any]:
    """Return the part of the results of `trainctl verify` that the table shows."""
    worlds = WORLDS if column in OPTIMIZERS else ONE_OF_EACH
    first, *others = (measured(column, world) for world in worlds)
    for other in others:
        found = {(cell["engine"], cell["accumulation"]): cell for cell in other["cells"]}
        first["cells"] = [
            cell
            if cell["role"] != "cell"
            else found.get((cell["engine"], cell["accumulation"]), cell)
            for cell in first["cells"]
        ]
    return first


def measured(column: str, world: tuple[str, ...]) -> dict[str, Any]:
    """Return the result of one verification."""
    optimizer, _, other = column.partition(" ")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-P", "-m", "launcher", "verify", *WORDS, *world]
        command += [f"--json={file}", f"optimizer={optimizer}", f"run_root={folder}"]
        if other in NETWORKS:
            values = {"vocab_size": 384, "tie_word_embeddings": True} | NETWORKS[other]
            (Path(folder) / "config.json").write_text(json.dumps(values), "utf-8")
            command += ["model=hf", f"model.path={folder}", "model.init=random"]
            # At the rate of the preset a flip of a router would be a difference.
            command += ["model.tokenizer=byt5", "optimizer.lr=0.05"]
        elif other:
            command += [f"precision={other}"]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        if not file.exists():
            raise SystemExit(f"{column}: {ended.stderr}")
        found = json.loads(file.read_text("utf-8"))
    kept = ("engine", "ranks", "accumulation", "status", "role", "reason", "deviation")
    return {
        "versions": found["versions"],
        "steps": found["steps"],
        "floor": found["floor"],
        "cells": [
            {key: cell[key] for key in kept}
            for cell in found["cells"]
            # One process has no cells on several ranks.
            if cell["role"] != "cell" or cell["engine"] != "single"
        ],
    }


def is_wrong(cell: dict[str, Any]) -> bool:
    """Return True for a cell that differs or crashed."""
    return cell["status"] in {"different", "crashed"}


def page(results: dict[str, Any]) -> str:
    """Return the page."""
    first = results[next(name for name in OPTIMIZERS if name in results)]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    text = INTRO.format(words=" ".join(WORDS), steps=first["steps"], versions=versions)
    reasons: dict[str, int] = {}
    for title, columns in TABLES.items():
        if known := [name for name in columns if name in results]:
            text += f"\n## {title}\n\n{table(results, known, reasons)}\n"
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return text + (f"\n{notes}\n" if notes else "")


def table(results: dict[str, Any], columns: list[str], reasons: dict[str, int]) -> str:
    """Return one table; reasons are numbered over all tables."""
    places = dict.fromkeys(
        (cell["engine"], cell["accumulation"])
        for name in columns
        for cell in results[name]["cells"]
        if cell["role"] == "cell"
    )
    rows = [["engine", *columns], ["---"] * (1 + len(columns))]
    rows.append(["floor", *(floor(results[name]) for name in columns)])
    for engine, cut in places:
        row = [f"{engine} a{cut}"]
        for name in columns:
            found = [
                cell
                for cell in results[name]["cells"]
                if (cell["engine"], cell["accumulation"], cell["role"]) == (engine, cut, "cell")
            ]
            row.append(shown(found[0], reasons) if found else "not run")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def floor(result: dict[str, Any]) -> str:
    """Return the floor as a cell of the table."""
    values = result["floor"]
    return " / ".join(number(values[key]) for key in ("loss", "norm", "weights"))


def shown(cell: dict[str, Any], reasons: dict[str, int]) -> str:
    """Return a cell of the table; its reason becomes a note."""
    moved = cell["deviation"]
    text = " / ".join(number(moved[key]) for key in ("loss", "norm", "weights")) if moved else ""
    if cell["status"] == "equal":
        return text
    reason = cell["reason"].replace("\n", " ").replace("|", "\\|")
    note = reasons.setdefault(reason, len(reasons) + 1)
    return " ".join(filter(None, [f"**{cell['status']}** ({note})", text]))


def number(value: float | str) -> str:
    """Return a deviation with one digit."""
    return f"{float(value):.0e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
