"""Trains the default job with every optimizer preset: `python scripts/bench/presets.py --out FILE`.

Each run is a process of its own, as a user would start it. The results are appended to FILE, one
JSON object per line; presets that FILE has already are not run again. The table goes to stdout, and
from there to docs/optimizers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "adamw"
LIMIT = 1.10
"""A preset should reach the reference's bits per byte times this."""


def train(words: list[str], steps: int) -> tuple[float | None, str]:
    """Return bits per byte of the held-out text, and the last line of an error."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launcher", "run", *words, f"max_steps={steps}"]
        command += ["eval_every_steps=null", "launch.threads=1", "checkpoint=none"]
        command += ["logging=quiet", f"run_root={folder}"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, cwd=folder, check=False
        )
        rows = [row for path in Path(folder).rglob("metrics.jsonl") for row in path.open()]
    scores = [json.loads(row).get("eval_bits_per_byte") for row in rows]
    found = [score for score in scores if score is not None]
    error = (done.stderr or done.stdout).strip().splitlines()
    return (found[-1], "") if found and done.returncode == 0 else (None, error[-1] if error else "")


def table(results: dict[str, dict[str, object]]) -> str:
    """Return the results as Markdown, best first."""
    reference = results.get(REFERENCE, {}).get("bits_per_byte")
    lines = [f"| preset | bits per byte | × {REFERENCE} |", "|---|---|---|"]
    scores = {name: result["bits_per_byte"] for name, result in results.items()}
    numbers = {name: score for name, score in scores.items() if isinstance(score, float)}
    for name, score in sorted(numbers.items(), key=lambda item: item[1]):
        ratio = f"{score / reference:.3f}" if isinstance(reference, float) else "–"
        lines.append(f"| {name} | {score:.3f} | {ratio} |")
    lines += [f"| {name} | – | – |" for name in results if name not in numbers]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="presets, or `preset;key=value;…`; default: all")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    presets = sorted(path.stem for path in (ROOT / "conf" / "optimizer").glob("[!_]*.yaml"))
    results: dict[str, dict[str, object]] = {}
    if arguments.out.exists():
        for row in map(json.loads, arguments.out.read_text("utf-8").splitlines()):
            results[row["run"]] = row
    for run in arguments.runs or presets:
        if run in results:
            continue
        name, *changes = run.split(";")
        score, error = train([f"optimizer={name}", *changes], arguments.steps)
        results[run] = {
            "run": run,
            "steps": arguments.steps,
            "bits_per_byte": score,
            "error": error,
        }
        with arguments.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(results[run]) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
