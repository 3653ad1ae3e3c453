"""Time of an optimizer step as a ratio to torch's fused AdamW, in one interleaved run.

    python scripts/bench/optimizers.py --sets gpt2,many-mat --reps 9
    python scripts/bench/optimizers.py --only Adafactor --threads 2

Every contender takes turns with fused AdamW on the same parameters; a figure is the median of the
ratios of neighbours, its spread the quartiles: a slow phase of the machine hits both sides. CPU
time leaves out what other programs took. State is counted by storage. Transient memory is how much
a step raises the peak of the resident memory, in a forked process whose freed memory goes back at
once. Libraries that are not installed are left out; torchao compiles its kernels first, which
takes minutes, and comes with --compiled.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import importlib.metadata
import math
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launcher.optimizer._blockwise.adafactor import AdafactorOptimizer
from launcher.optimizer._blockwise.lamb import LambOptimizer
from launcher.optimizer._blockwise.stable_adamw import StableAdamWOptimizer

LR = 1e-6
COLUMNS = (
    "optimizer",
    "ms per step",
    "× fused AdamW (quartiles)",
    "the same in CPU time",
    "transient MiB",
    "state bytes per parameter",
)
M_MMAP_THRESHOLD = -3  # glibc's mallopt


def gpt2(layers: int, dim: int, vocab: int = 50257, context: int = 1024) -> list[tuple[int, ...]]:
    """Shapes of a GPT-2 with tied embeddings."""
    shapes: list[tuple[int, ...]] = [(vocab, dim), (context, dim)]
    for _ in range(layers):
        shapes += [(dim,), (dim,), (dim, 3 * dim), (3 * dim,), (dim, dim), (dim,)]
        shapes += [(dim,), (dim,), (dim, 4 * dim), (4 * dim,), (4 * dim, dim), (dim,)]
    return [*shapes, (dim,), (dim,)]


def t5(layers: int, dim: int, inner: int, vocab: int = 32128) -> list[tuple[int, ...]]:
    """Shapes of a T5 v1.0."""
    attention, mlp = [(dim, dim)] * 4, [(inner, dim), (dim, inner)]
    encoder = [*attention, *mlp, (dim,), (dim,)] * layers
    decoder = [*attention, *attention, *mlp, (dim,), (dim,), (dim,)] * layers
    return [(vocab, dim), (32, 12), (32, 12), *encoder, *decoder, (dim,), (dim,)]


def vit(layers: int, dim: int) -> list[tuple[int, ...]]:
    """Shapes of a ViT with patches of 16 × 16 pixels."""
    attention = [(dim, dim), (dim,)] * 4
    mlp = [(4 * dim, dim), (4 * dim,), (dim, 4 * dim), (dim,)]
    block = [*attention, *mlp, *[(dim,)] * 4]
    ends = [
        (1, 1, dim),
        (1, 197, dim),
        (dim, 3, 16, 16),
        (dim,),
        (dim,),
        (dim,),
        (1000, dim),
        (1000,),
    ]
    return [*block * layers, *ends]


DEFAULT_JOB: list[tuple[int, ...]] = [
    *[(384, 96)] * 2,
    *[(96, 96)] * 8,
    *[(256, 96)] * 4,
    *[(96, 256)] * 2,
    *[(96,)] * 5,
]
SETS: dict[str, list[tuple[int, ...]]] = {
    "default-job": DEFAULT_JOB,
    "gpt2": gpt2(12, 768),
    "t5-base": t5(12, 768, 3072),
    "vit-base": vit(12, 768),
    "gpt2-quarter": gpt2(6, 384),
    "many-mat": [(32, 32)] * 1000,
    "many-vec": [(1024,)] * 1000,
    "lora": [(16, 768), (768, 16)] * 96,
    "conv": [*[(64, 64, 3, 3)] * 6, *[(256, 256, 3, 3)] * 4, (512, 512, 3, 3)],
}
T5: dict[str, Any] = {"lr": LR, "scale_parameter": False, "relative_step": False}
RELATIVE: dict[str, Any] = {"lr": None, "warmup_init": True}
MEAN: dict[str, Any] = {**T5, "beta1": 0.9, "weight_decay": 0.01}
ADAFACTOR: dict[str, Any] = {
    "eps": (1e-30, 1e-3),
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "beta1": None,
    "weight_decay": 0.0,
    "scale_parameter": True,
    "relative_step": True,
    "warmup_init": False,
}
STABLE: dict[str, Any] = {
    "lr": LR,
    "betas": (0.9, 0.99),
    "eps": 1e-6,
    "weight_decay": 1e-2,
    "decouple_lr": False,
    "max_lr": None,
    "kahan": True,
}
LAMB: dict[str, Any] = {
    "lr": LR,
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.01,
    "bias_correction": True,
    "grad_averaging": True,
    "trust_clip": False,
    "always_adapt": False,
}


@dataclass(frozen=True)
class Contender:
    """An optimizer under a name.

    Attributes:
        name: Library, class and what matters of its options.
        make: From parameters.
        compiles: Whether its first step takes minutes.
    """

    name: str
    make: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
    compiles: bool = False


def of(module: str, name: str, **options: Any) -> Callable[[Any], Any]:
    """A maker that imports its library when it is called."""
    return lambda params: getattr(importlib.import_module(module), name)(params, **options)


def reference(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer with which all are compared."""
    return torch.optim.AdamW(params, lr=LR, fused=True)


CONTENDERS = (
    Contender("torch AdamW fused", reference),
    Contender("torch AdamW foreach", of("torch.optim", "AdamW", lr=LR, foreach=True)),
    Contender("torch AdamW for", of("torch.optim", "AdamW", lr=LR, foreach=False)),
    Contender("**ours Adafactor T5**", lambda p: AdafactorOptimizer(p, **{**ADAFACTOR, **T5})),
    Contender(
        "**ours Adafactor relative**", lambda p: AdafactorOptimizer(p, **{**ADAFACTOR, **RELATIVE})
    ),
    Contender(
        "**ours Adafactor T5, beta1, decay**",
        lambda p: AdafactorOptimizer(p, **{**ADAFACTOR, **MEAN}),
    ),
    Contender("torch Adafactor for", of("torch.optim", "Adafactor", lr=LR, foreach=False)),
    Contender("torch Adafactor foreach", of("torch.optim", "Adafactor", lr=LR, foreach=True)),
    Contender("transformers Adafactor T5", of("transformers.optimization", "Adafactor", **T5)),
    Contender(
        "transformers Adafactor relative", of("transformers.optimization", "Adafactor", **RELATIVE)
    ),
    Contender(
        "transformers Adafactor T5, beta1, decay",
        of("transformers.optimization", "Adafactor", **MEAN),
    ),
    Contender("**ours StableAdamW**", lambda p: StableAdamWOptimizer(p, **STABLE)),
    Contender(
        "torch-optimi StableAdamW foreach",
        of("optimi", "StableAdamW", lr=LR, foreach=True, triton=False),
    ),
    Contender(
        "torch-optimi StableAdamW for",
        of("optimi", "StableAdamW", lr=LR, foreach=False, triton=False),
    ),
    Contender("**ours LAMB**", lambda p: LambOptimizer(p, **LAMB)),
    Contender("bitsandbytes LAMB 32-bit", of("bitsandbytes.optim", "LAMB32bit", lr=LR)),
    Contender("bitsandbytes AdamW 8-bit", of("bitsandbytes.optim", "AdamW8bit", lr=LR)),
    Contender("torchao AdamW 8-bit", of("torchao.optim", "AdamW8bit", lr=LR), compiles=True),
)


def tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors in some state, subclasses taken apart."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            for name in value.__tensor_flatten__()[0]:
                yield from tensors(getattr(value, name))
        else:
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the storages of the state."""
    storages = [tensor.untyped_storage() for tensor in tensors(list(optimizer.state.values()))]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resident(*, start: bool = False) -> tuple[int, int]:
    """Peak and present resident memory in bytes; `start` resets the peak."""
    if start:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line[:5]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
    return values["VmHWM"], values["VmRSS"]


def transient_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Return the increase of the memory peak by a step; NaN without /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        raised = math.nan
        try:
            torch.set_num_threads(1)  # a fork has no others
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
            libc.malloc_trim(0)
            optimizer.step()  # what a fork makes private is so now
            gc.collect()
            libc.malloc_trim(0)
            _, before = resident(start=True)
            optimizer.step()
            raised = float(max(0, resident()[0] - before))
        finally:
            os.write(writer, struct.pack("d", raised))
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    data = os.read(reader, 8)
    os.close(reader)
    return float(struct.unpack("d", data)[0]) if len(data) == 8 else math.nan


def seconds(optimizer: torch.optim.Optimizer, steps: int) -> tuple[float, float]:
    """Wall and processor time of one step."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        optimizer.step()
    return (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps


def spread(ratios: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def measure(
    contender: Contender, params: Sequence[nn.Parameter], base: torch.optim.Optimizer, reps: int
) -> str:
    """A contender's line of the table."""
    elements = sum(param.numel() for param in params)
    steps = max(1, 4_000_000 // elements)
    try:
        optimizer = contender.make(params)
        first, _ = seconds(optimizer, 1)
        optimizer.step()
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its entry in the table
        return f"| {contender.name} | {type(error).__name__}: {str(error).splitlines()[0][:80]} |"
    walls, processors, times = [], [], []
    for _ in range(reps if first < 60 else 3):
        theirs, mine = seconds(base, steps), seconds(optimizer, steps)
        times.append(mine[0])
        walls.append(mine[0] / theirs[0])
        processors.append(mine[1] / theirs[1])
    cells = (
        contender.name,
        f"{statistics.median(times) * 1e3:.2f}",
        spread(walls),
        spread(processors),
        f"{transient_bytes(optimizer) / 2**20:.1f}",
        f"{state_bytes(optimizer) / elements:.3f}",
    )
    return f"| {' | '.join(cells)} |"


def versions() -> str:
    """The libraries that are here."""
    names = ("torch", "transformers", "torch-optimi", "bitsandbytes", "torchao")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def installed(contender: Contender) -> bool:
    """Return True if its library is installed."""
    try:
        contender.make([nn.Parameter(torch.zeros(1))])
    except ImportError:
        return False
    return True


def flags_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated: %(default)s")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--reps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="also those that compile first")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def compare(name: str, flags: argparse.Namespace) -> None:
    """Print the table of one set."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape) * 0.02) for shape in SETS[name]]
    for param in params:
        param.grad = torch.randn_like(param) * 1e-3
    elements = sum(param.numel() for param in params)
    base = reference(params)
    base.step()
    print(f"\n### {name}: {len(params)} tensors, {elements / 1e6:.1f} M parameters\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for contender in CONTENDERS:
        wanted = flags.only in contender.name and (flags.compiled or not contender.compiles)
        if wanted and installed(contender):
            print(measure(contender, params, base, flags.reps), flush=True)
            gc.collect()


def main() -> None:
    """Print the tables, each set in its own process, because allocators keep freed memory."""
    flags = flags_of(sys.argv[1:])
    if flags.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(flags.threads)
        compare(flags.sets, flags)
        return
    words = " ".join(sys.argv[1:])
    print(f"`python scripts/bench/optimizers.py {words}`, {time.strftime('%Y-%m-%d')}.")
    print(f"{processor()}, {flags.threads} thread(s); {versions()}.", flush=True)
    for name in flags.sets.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--sets", name, "--one"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
