"""Writes docs/engines.md: how far each engine is from one process, by `trainctl verify`.

    python scripts/engines_table.py                  # all optimizers, about two minutes each
    python scripts/engines_table.py adamw lion       # the others as docs/engines.json has them
    python scripts/engines_table.py --write          # the table only, from docs/engines.json

On two ranks of one machine, with a small Llama, short samples of unequal length and clipping.
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
WORDS = ("--shrink", "--ranks=2", "--accumulation=1,4", "--steps=8", "task.packing=false")
INTRO = """# Engines compared with one process

Written by `python scripts/engines_table.py` from `trainctl verify {words}`
with each optimizer; do not edit. float32, {steps} steps, gradient clipping on, samples of unequal
length. A cell shows the largest relative deviation from one process of loss / gradient norm / any
parameter. Allowed is 1e-6 / 1e-6 / 1e-5, or three times the floor: the deviation of a second cut in
one process. a1 and a4: 1 and 4 micro-batches per rank.

Versions: {versions}.
"""


def main(words: list[str]) -> int:
    """Verify what was asked for, and write the table of everything."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    asked = [] if words == ["--write"] else words or OPTIMIZERS
    for optimizer in asked:
        results[optimizer] = verified(optimizer)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
        wrong = [cell for cell in results[optimizer]["cells"] if is_wrong(cell)]
        print(
            f"{optimizer}: {len(results[optimizer]['cells'])} cells, {len(wrong)} wrong", flush=True
        )
    PAGE.write_text(page(results), "utf-8")
    return 0


def verified(optimizer: str) -> dict[str, Any]:
    """Return the part of the result of `trainctl verify` that the table shows."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-P", "-m", "launcher", "verify", *WORDS]
        command += [f"--json={file}", f"optimizer={optimizer}", f"run_root={folder}"]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        if not file.exists():
            raise SystemExit(f"{optimizer}: {ended.stderr}")
        found = json.loads(file.read_text("utf-8"))
    kept = ("engine", "ranks", "accumulation", "status", "role", "reason", "deviation")
    return {
        "versions": found["versions"],
        "steps": found["steps"],
        "floor": found["floor"],
        "cells": [
            {key: cell[key] for key in kept}
            for cell in found["cells"]
            # One process has no cells on two ranks.
            if cell["role"] != "cell" or cell["engine"] != "single"
        ],
    }


def is_wrong(cell: dict[str, Any]) -> bool:
    """Return True for a cell that differs or crashed."""
    return cell["status"] in {"different", "crashed"}


def page(results: dict[str, Any]) -> str:
    """Return the page."""
    known = [name for name in OPTIMIZERS if name in results]
    first = results[known[0]]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    text = INTRO.format(words=" ".join(WORDS), steps=first["steps"], versions=versions)
    places = dict.fromkeys(
        (cell["engine"], cell["accumulation"])
        for name in known
        for cell in results[name]["cells"]
        if cell["role"] == "cell"
    )
    reasons: dict[str, int] = {}
    rows = [["engine", *known], ["---"] * (1 + len(known))]
    rows.append(["floor", *(floor(results[name]) for name in known)])
    for engine, cut in places:
        row = [f"{engine} a{cut}"]
        for name in known:
            found = [
                cell
                for cell in results[name]["cells"]
                if (cell["engine"], cell["accumulation"], cell["role"]) == (engine, cut, "cell")
            ]
            row.append(shown(found[0], reasons) if found else "not run")
        rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return f"{text}\n{table}\n" + (f"\n{notes}\n" if notes else "")


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
