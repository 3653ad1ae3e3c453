"""Writes docs/optimizers.md: `python scripts/optimizers_table.py`, a minute or two on one core.

One row per preset of conf/optimizer: after whom it is, what computes it, the bytes it keeps, what a
step costs compared with torch's fused AdamW, and how far it ends from its reference on the problems
of tests/optimizer, whose tables and comparisons are used here as they are there.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.errors import ConfigError
from scripts.bench.optimizers import M_MMAP_THRESHOLD, processor, state_bytes
from scripts.docstrings import source
from scripts.optimizer_references import Golden, Live, references
from tests.optimizer.conftest import option_of

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "optimizers.md"
COMMAND = "python scripts/optimizers_table.py"
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "optimizer").glob("[!_]*.yaml"))
COLUMNS = (
    "preset",
    "kind",
    "source",
    "computed by",
    "bytes, fp32",
    "bytes, bf16",
    "time × fused AdamW",
    "reference",
    "distance, fp64",
    "distance, fp32",
)
M_TRIM_THRESHOLD = -1  # glibc's mallopt
SECONDS = 1.2
"""Time limit for the timing of one preset, without its first step."""
UNCOMPARED = {
    f"paged_{kind}": f"the code of {kind}, with paged memory"
    for kind in ("adamw_8bit", "ademamix_8bit", "lion_8bit")
}
"""Reasons for missing references."""


class GPT2(nn.Module):
    """The parameters of a GPT-2 with tied embeddings, its projections apart; nothing else."""

    def __init__(self, *, layers: int = 2, dim: int = 384, vocab: int = 12288) -> None:
        super().__init__()
        # Where Adam-mini looks for the size of a head.
        self.config = argparse.Namespace(hidden_size=dim, num_attention_heads=dim // 64)
        self.wte = nn.Embedding(vocab, dim)
        self.wpe = nn.Embedding(1024, dim)
        self.h = nn.ModuleList(self._block(dim) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)

    @staticmethod
    def _block(dim: int) -> nn.ModuleDict:
        square = {name: nn.Linear(dim, dim) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        norms = {name: nn.LayerNorm(dim) for name in ("ln_1", "ln_2")}
        mlp = {"up": nn.Linear(dim, 4 * dim), "down": nn.Linear(4 * dim, dim)}
        return nn.ModuleDict({**norms, **square, **mlp})


def with_gradients(dtype: torch.dtype, **sizes: int) -> tuple[nn.Module, int]:
    """Such a network in a format, with gradients, and how many parameters it has."""
    torch.manual_seed(0)
    module = GPT2(**sizes).to(dtype)
    for param in module.parameters():
        param.grad = torch.randn_like(param) * 1e-3
    return module, sum(param.numel() for param in module.parameters())


def bytes_per_parameter(
    option: OptimizerOption, dtype: torch.dtype = torch.float32, **sizes: int
) -> float:
    """Return the bytes of state per parameter after a step."""
    module, elements = with_gradients(dtype, **sizes)
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    optimizer.step()
    return state_bytes(optimizer) / elements


def keep_freed_memory() -> None:
    """Let glibc's heap keep what is freed, as far as it goes (32 MiB).

    Otherwise what ran before decides whether the temporaries of a step come from fresh pages, which
    doubles the time of some.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 25)


def seconds(optimizer: torch.optim.Optimizer, steps: int = 1) -> float:
    """Processor time of a step: what other programs take does not count."""
    start = time.process_time()
    for _ in range(steps):
        optimizer.step()
    return (time.process_time() - start) / steps


def time_ratio(option: OptimizerOption) -> float:
    """A step's time over that of torch's fused AdamW, taking turns; the median of neighbours.

    What happens every so many steps is shared out among them: SOAP is timed by whole periods, a
    low-rank projection is renewed in the first step, and then every `update_every` steps.
    """
    module, _ = with_gradients(torch.float32)
    base_module, _ = with_gradients(torch.float32)
    base = torch.optim.AdamW(base_module.parameters(), fused=True)
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    base.step()
    first = seconds(optimizer)
    steps = getattr(option, "precondition_frequency", 1)
    seconds(optimizer, steps)
    theirs: list[float] = []
    ours: list[float] = []
    start = time.perf_counter()
    while len(ours) < 5 or (time.perf_counter() - start < SECONDS and len(ours) < 51):
        theirs.append(seconds(base))
        ours.append(seconds(optimizer, steps))
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    if every := getattr(option, "update_every", None):
        renewal = max(0.0, first - statistics.median(ours))
        ratio += renewal / every / statistics.median(theirs)
    return ratio


def computed_by(option: OptimizerOption) -> str:
    """The libraries whose classes the built optimizer derives from, or `ours`.

    Where it cannot be built it is what the module says after `from`.
    """
    try:
        optimizer = option.build(OptimizerTarget(GPT2(), "cpu"))
    except ConfigError:
        module = inspect.getmodule(type(option))
        named = re.search(r"\bfrom ([\w.-]+\w)", (module and module.__doc__) or "")
        return named[1] if named else "–"
    members = getattr(optimizer, "_members", (optimizer,))
    return ", ".join(dict.fromkeys(_library(type(member)) for member in members))


def _library(kind: type) -> str:
    theirs = next(c for c in kind.__mro__ if not c.__module__.startswith("launcher."))
    if theirs is torch.optim.Optimizer:
        return "ours"
    module = theirs.__module__.partition(".")[0]
    distribution = packages_distributions()[module][0]
    return f"{distribution} {version(distribution)}"


class Notes:
    """Reasons for what is missing, numbered as they come up."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def dash(self, reason: str) -> str:
        """A dash with the number of its reason."""
        if reason not in self._texts:
            self._texts.append(reason)
        return f"–<sup>{self._texts.index(reason) + 1}</sup>"

    def lines(self) -> Iterable[str]:
        """The reasons by number."""
        return (f"{number}. {text}." for number, text in enumerate(self._texts, 1))


def attempt(measure: Callable[[], str], notes: Notes) -> str:
    """A cell, or a dash with the reason why there is none."""
    try:
        return measure()
    except ConfigError as error:
        return notes.dash(error.problems[0].message)
    except pytest.skip.Exception as error:
        return notes.dash(str(error))
    except (RuntimeError, TypeError, ValueError) as error:
        return notes.dash(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def distance(preset: str, reference: Golden | Live | None, dtype: str, notes: Notes) -> str:
    """A cell of distance."""
    if reference is None:
        return notes.dash(UNCOMPARED.get(preset, "no reference"))
    apart = reference.distance(preset, dtype)
    if apart is None:
        return notes.dash(f"compared in {' and '.join(reference.dtypes)} only")
    return f"{apart:.0e}" if apart else "0"


def row(preset: str, notes: Notes) -> str:
    """A preset's line of the table."""
    option = option_of(preset)
    reference = references().get(preset)
    cells = [
        preset,
        option.kind,
        source(option),
        computed_by(option),
        attempt(lambda: f"{bytes_per_parameter(option):.2f}", notes),
        attempt(lambda: f"{bytes_per_parameter(option, torch.bfloat16):.2f}", notes),
        attempt(lambda: f"{time_ratio(option):.2f}", notes),
        "–" if reference is None else attempt(reference.reference, notes),
        *(
            attempt(partial(distance, preset, reference, dtype, notes), notes)
            for dtype in ("float64", "float32")
        ),
    ]
    return f"| {' | '.join(cells)} |"


def document() -> str:
    """The whole page."""
    _, elements = with_gradients(torch.float32)
    notes = Notes()
    rows = []
    for preset in PRESETS:
        rows.append(row(preset, notes))
        print(rows[-1], file=sys.stderr, flush=True)
    made = (
        f"`{COMMAND}`, {time.strftime('%Y-%m-%d')}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; {processor()}, {torch.get_num_threads()} thread."
    )
    text = f"""\
# Optimizers

{made}

*Bytes*: bytes of state per parameter after one step, by storage. *Time*: processor time of a step
relative to torch's fused AdamW, measured in turns (medians; periodic work is averaged over its
period; freed memory is kept for temporaries), on {elements / 1e6:.1f} M parameters with
the shapes of a GPT-2 of width 384, more than half of which are the token embedding.
Results for GPT-2-small and for other libraries are in [benchmarks.md](benchmarks.md).
*Distance*: 2-norm of the difference from the parameters of the reference after 50 steps
of the golden problem, the maximum over all cases of the tests. If the reference is its authors'
package: after 8 steps of a small network (AdEMAMix: 50 steps of the golden problem).

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""
    return "\n".join([text + "\n".join(rows), "", *notes.lines(), ""])


def main() -> None:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--print", action="store_true", help="write to stdout instead")
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_freed_memory()
    page = document()
    if flags.print:
        print(page, end="")
    else:
        TABLE.parent.mkdir(exist_ok=True)
        # The scores on the default job are measured by scripts/bench/presets.py.
        _, heading, scores = TABLE.read_text("utf-8").partition("## The presets on the default job")
        TABLE.write_text(page + ("\n" if heading else "") + heading + scores, encoding="utf-8")


if __name__ == "__main__":
    main()
