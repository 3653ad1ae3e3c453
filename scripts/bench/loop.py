"""Cost of the loop over a hand-written one, compared with other libraries, in one interleaved run.

    python scripts/bench/loop.py --size tiny --rounds 3
    python scripts/bench/loop.py --peers raw:loader,trainctl
    python scripts/bench/loop.py --peers ddp,trainctl:ddp       # two ranks each; also fsdp, zero2
    python scripts/bench/loop.py --peers raw:loader,trainctl:plain    # without TensorBoard

All peers are started, one after another (start-up and first step are timed alone), run to a gate
behind the warm-up, and then take turns: each runs `period` optimizer steps of which the last
`window` are timed. So the two sides of each ratio lie a few hundred milliseconds apart, and a slow
phase of the machine hits both. Every number is a median of pairwise ratios to the first peer.
`same` says that the final parameters equal the first peer's (for fsdp and zero2 it cannot tell:
rank 0's optimizers hold other shards). Peers that are not installed (lightning) are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MODULES = {
    "raw": "raw",
    "ddp": "raw_ddp",
    "fsdp": "raw_fsdp",
    "zero2": "raw_zero2",
    "hf": "hf_trainer",
    "lightning": "lightning_trainer",
    "accelerate": "accelerate_loop",
}
ON_TWO_RANKS = ("ddp", "fsdp", "zero2")
PEERS = "raw:loader,raw:fast,trainctl,accelerate,hf:quiet,hf:tqdm,lightning:quiet,lightning:default"
# Warm-up steps, period, timed steps at the end of a period, turns. A window is a multiple of the
# logging cadence, so that each holds the same number of log lines.
PLANS = {"nano": (105, 35, 30, 40), "tiny": (45, 13, 10, 40), "mid": (12, 11, 10, 10)}


class Peer:
    """One running program and our end of its gate."""

    def __init__(self, name: str, flags: argparse.Namespace, folder: Path) -> None:
        self.name, self.flags = name, flags
        self.folder = folder / name.replace(":", "_")
        self.folder.mkdir()
        self.out = self.folder / "result.json"
        fifos = [self.folder / "go", self.folder / "done"]
        for fifo in fifos:
            os.mkfifo(fifo)
        self.go_end, self.done_end = (os.open(fifo, os.O_RDWR) for fifo in fifos)
        warmup, period, _, _ = PLANS[flags.size]
        environment = {
            **os.environ,
            "BENCH_OUT": str(self.out),
            "BENCH_STEPS": str(flags.steps),
            "BENCH_GATE": f"{fifos[0]},{fifos[1]},{warmup},{period}",
            "OMP_NUM_THREADS": str(flags.threads),
            "PYTHONPATH": os.pathsep.join(map(str, [HERE / "probe", folder / "extension", ROOT])),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.start = time.perf_counter_ns()
            self.process = subprocess.Popen(
                self._command(), env=environment, stdout=log, stderr=log, cwd=self.folder
            )

    def _command(self) -> list[str]:
        flags = self.flags
        if self.name.startswith("trainctl"):
            return [sys.executable, "-m", "launcher", *self._overrides()]
        name, _, variant = self.name.partition(":")
        program = [sys.executable, "-m", f"scripts.bench.peers.{MODULES[name]}"]
        settings = {
            "size": flags.size,
            "accumulation": flags.accumulation,
            "steps": flags.steps,
            "threads": flags.threads,
            "folder": self.folder,
            "variant": variant,
        }
        return [*program, *(f"--{key}={value}" for key, value in settings.items())]

    def _overrides(self) -> list[str]:
        from scripts.bench.peers.common import SIZES

        flags, size = self.flags, SIZES[self.flags.size]
        _, _, variant = self.name.partition(":")
        engine = variant if variant in ON_TWO_RANKS else "single"
        ranks = 2 if variant in ON_TWO_RANKS else 1
        words = (
            "run --config-dir={0} model=bench task=bench data=bench model.size={1} task.size={1}"
        )
        return [
            *words.format(HERE / "peers/conf", flags.size).split(),
            f"task.rows={flags.steps * flags.accumulation * size.batch * ranks}",
            f"parallelism={engine}",
            f"launch.processes={ranks}",
            f"logging.tensorboard={'false' if self.name.endswith(':plain') else 'true'}",
            f"task.seq_len={size.seq_len}",
            "accumulation=steps",
            f"accumulation.micro_batch_size={size.batch}",
            f"accumulation.steps={flags.accumulation}",
            "optimizer.lr=1e-3",
            "optimizer.betas=[0.9,0.999]",
            "optimizer.weight_decay=0.01",
            "scheduler=cosine",
            "scheduler.warmup_steps=0",
            f"max_steps={flags.steps}",
            "eval_every_steps=null",
            f"launch.threads={flags.threads}",
            "launch.device=cpu",
        ]

    def wait_gate(self) -> bool:
        """True at the gate, False at the end of the program."""
        while True:
            if select.select([self.done_end], [], [], 0.2)[0]:
                os.read(self.done_end, 1)
                return True
            if self.process.poll() is not None:
                return False
            if self.out.exists():
                self.process.wait()
                return False

    def go(self) -> None:
        """Let it run its next period."""
        os.write(self.go_end, b"G")

    def finish(self) -> dict[str, Any]:
        """The measurements."""
        status = self.process.wait()
        end = time.perf_counter_ns()
        if status or not self.out.exists():
            sys.exit(f"{self.name} ended with {status}:\n{self.log.read_text()[-3000:]}")
        result = json.loads(self.out.read_text())
        warmup, period, window, _ = PLANS[self.flags.size]
        ends = range(warmup + period, self.flags.steps + 1, period)

        def per_step(times: list[int]) -> list[float]:
            return [(times[e - 1] - times[e - 1 - window]) / window / 1e6 for e in ends]

        return {
            **result,
            "wall_ms": per_step(result["wall"]),
            "cpu_ms": per_step(result["cpu"]),
            "first_s": (result["wall"][0] - self.start) / 1e9,
            "first_cpu_s": result["cpu"][0] / 1e9,
            "exit_s": (end - result["wall"][-1]) / 1e9,
        }


def one_round(
    names: list[str], flags: argparse.Namespace, order: random.Random
) -> dict[str, dict[str, Any]]:
    """Start all peers, let them take turns, and collect what they measured."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        extend(folder / "extension")
        peers: dict[str, Peer] = {}
        for name in order.sample(names, len(names)):
            peers[name] = Peer(name, flags, folder)
            if not peers[name].wait_gate():
                peers[name].finish()
        for _ in range(flags.turns - 1):
            for name in order.sample(names, len(names)):
                peers[name].go()
                peers[name].wait_gate()
        results = {}
        for name in order.sample(names, len(names)):
            peers[name].go()
            while peers[name].wait_gate():
                pass
            results[name] = peers[name].finish()
        return results


def extend(folder: Path) -> None:
    """Make the workload known to trainctl as any third party would: through entry points."""
    info = folder / "trainctl_bench-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trainctl-bench\nVersion: 1\n")
    module = "scripts.bench.peers.trainctl_options"
    kinds = {"model": "BenchModel", "task": "BenchTask", "data": "BenchData"}
    lines = [f"{group}.bench = {module}:{name}" for group, name in kinds.items()]
    (info / "entry_points.txt").write_text("\n".join(["[trainctl.options]", *lines, ""]))


def table(names: list[str], rounds: list[dict[str, Any]], flags: argparse.Namespace) -> str:
    """The comparison as Markdown."""
    base = names[0]
    turns = f"{len(rounds)} rounds of {flags.turns} turns of {PLANS[flags.size][2]} steps"
    run = f"size={flags.size} accumulation={flags.accumulation} threads={flags.threads}"
    columns = [
        "peer",
        "ms/step",
        "wall ratio (quartiles)",
        "CPU ratio",
        "+ CPU µs/step",
        "CPU s to first step (ratio)",
        "with its launcher",
        "first step s",
        "exit s",
        "peak MiB",
        "same",
    ]
    lines = [f"{run}: {turns}; ratios to {base}\n", f"| {' | '.join(columns)} |"]
    lines.append("|---" * len(columns) + "|")
    for name in names:

        def pairs(key: str, name: str = name) -> list[tuple[float, float]]:
            return [p for r in rounds for p in zip(r[name][key], r[base][key], strict=True)]

        def one(key: str, name: str = name) -> float:
            return float(statistics.median(r[name][key] for r in rounds))

        wall = [ours / theirs for ours, theirs in pairs("wall_ms")]
        low, _, high = statistics.quantiles(wall, n=4)
        cpu = statistics.median(ours / theirs for ours, theirs in pairs("cpu_ms"))
        more = statistics.median(ours - theirs for ours, theirs in pairs("cpu_ms")) * 1e3
        first = statistics.median(r[name]["first_cpu_s"] / r[base]["first_cpu_s"] for r in rounds)
        whole = statistics.median(
            (r[name]["first_cpu_s"] + r[name]["launcher_cpu_s"]) / r[base]["first_cpu_s"]
            for r in rounds
        )
        memory = statistics.median(r[name]["peak_mib"] - r[base]["peak_mib"] for r in rounds)
        same = all(
            r[name]["count"] == r[base]["count"]
            and abs(r[name]["absolute"] / r[base]["absolute"] - 1) < 1e-6
            for r in rounds
        )
        lines.append(
            f"| {name} | {statistics.median(o for o, _ in pairs('wall_ms')):.3f} "
            f"| {statistics.median(wall):.3f} ({low:.3f}..{high:.3f}) | {cpu:.3f} | {more:+.0f} "
            f"| {one('first_cpu_s'):.2f} ({first:.2f}) | {whole:.2f} | {one('first_s'):.2f} "
            f"| {one('exit_s'):.2f} | {one('peak_mib'):.0f} ({memory:+.0f}) "
            f"| {'yes' if same else 'NO'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default=PEERS, help="the first is the baseline")
    parser.add_argument("--size", choices=sorted(PLANS), default="tiny")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=0, help="0: by size")
    flags = parser.parse_args()
    warmup, period, _, turns = PLANS[flags.size]
    flags.turns = flags.turns or turns
    flags.steps = warmup + flags.turns * period
    names = [
        name
        for name in flags.peers.split(",")
        if not name.startswith("lightning") or importlib.util.find_spec("lightning")
    ]
    order = random.Random(0)
    rounds = []
    for number in range(flags.rounds):
        rounds.append(one_round(names, flags, order))
        print(f"round {number + 1}/{flags.rounds}", file=sys.stderr, flush=True)
    print(table(names, rounds, flags))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
