"""`trainctl verify`: does this config train the same on other engines?"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import announce, bold, table
from launcher.verify import STEPS

if TYPE_CHECKING:
    from launcher.verify.result import Verification
    from launcher.verify.session import CellResult


_PRECISIONS = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def main(argv: list[str]) -> int:
    """Run a config on several engines, compare, and print the matrix."""
    arguments = _arguments()
    flags, overrides = arguments.split(argv)
    ranks = _numbers(arguments, "--ranks", flags.ranks or "2")
    accumulations = _numbers(arguments, "--accumulation", flags.accumulation)
    engines = [each for each in flags.engines.split(",") if each]
    if not engines:
        arguments.error("--engines needs a preset of parallelism, or `all`")
    if flags.faults is not None:
        return _faults(arguments, flags, overrides)
    if flags.steps < 1:
        arguments.error(f"--steps must be at least 1, but is {flags.steps}")
    from launcher.launch import preflight, signals_end_launch
    from launcher.verify import verify

    with signals_end_launch():
        if flags.dtype is not None:
            overrides = [*overrides, f"precision={_PRECISIONS[flags.dtype]}"]
        job = composition(flags, overrides).load()
        preflight(job.config)
        announce("starting the reference, in a few seconds")
        found = verify(
            job.config,
            engines=engines,
            ranks=ranks,
            accumulations=accumulations,
            steps=flags.steps,
            shrink=flags.shrink,
            config_dirs=flags.config_dir,
            report=_progress,
        )
    # Written and printed before the check: a difference ends with an error, and its matrix is then
    # what the user needs.
    path = _write(found, flags)
    print(_as_text(found))
    print(f"written to {path}")
    sys.stdout.flush()
    found.check()
    return 0


def _faults(arguments: Arguments, flags: Namespace, overrides: Sequence[str]) -> int:
    """Kill ranks of a shrunk run, and report what was lost."""
    if flags.faults < 1:
        arguments.error(f"--faults must be at least 1, but is {flags.faults}")
    ranks = None if flags.ranks is None else _numbers(arguments, "--ranks", flags.ranks)[0]
    from launcher.launch import preflight, signals_end_launch
    from launcher.verify import certificate, faults

    with signals_end_launch():
        job = composition(flags, overrides).load()
        preflight(job.config)
        announce("starting the undisturbed run, then the one with kills")
        report = faults.verify_faults(job.config, flags.faults, ranks=ranks, seed=flags.seed)
    if flags.json is not None:
        certificate.save(flags.json, faults.as_json(report))
    print(table(faults.rows(report)))
    print(bold(faults.summary(report)), flush=True)
    report.check()
    return 0


def _arguments() -> Arguments:
    arguments = Arguments(
        "verify",
        "[group=option] [key=value]",
        "Train a config for some steps in one process and on other engines, numbers of ranks and "
        "accumulations, with the same global batch, on this machine. Compare loss, gradient norm, "
        "learning rate, samples and weights after each step with those of one process. What is "
        "allowed is the floor: three times the difference of two cuts in one process. Every cell "
        "is equal, refused (with the reason) or different. Exits with 15 if a cell differs.",
        "trainctl verify optimizer=adafactor",
        "trainctl verify --engines ddp --ranks 2,4 --accumulation 1,4 --steps 8",
    )
    add_composition_flags(arguments)
    add = arguments.add_argument
    text = "presets of parallelism, with commas; config: the config's own engine (default: all)"
    add("--engines", metavar="A,B", default="all", help=text)
    add("--ranks", metavar="N,M", help="numbers of processes (default: 2)")
    text = "micro-batches into which each rank cuts its share of the global batch (default: 1,4)"
    add("--accumulation", metavar="N,M", default="1,4", help=text)
    text = f"optimizer steps (default: {STEPS})"
    add("--steps", metavar="N", type=int, default=STEPS, help=text)
    text = "number format; the same as precision=fp64 for float64, and so on"
    add("--dtype", choices=list(_PRECISIONS), help=text)
    add("--shrink", action="store_true", help="take a small model and few data: seconds per cell")
    add("--json", metavar="FILE", type=Path, help="write the result as JSON")
    add("--html", metavar="FILE", type=Path, help="write the matrix as one HTML file")
    text = "folder of SAMENESS.json (default: where `run` looks: RUN_ROOT/sameness/NAME)"
    add("-o", "--output", metavar="DIR", type=Path, help=text)
    text = (
        "kill ranks of a shrunk run of the config's own engine N times, restart them, and report "
    )
    add("--faults", metavar="N", type=int, help=f"{text}what was lost; exits with 15 if anything")
    add("--seed", metavar="N", type=int, help="with --faults: seed of ranks and moments")
    return arguments


def _numbers(arguments: Arguments, flag: str, text: str) -> list[int]:
    words = [word for word in text.split(",") if word]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        arguments.error(f"{flag} needs whole numbers above 0 with commas, but is {text!r}")
    # A number typed twice would run its cells twice.
    return list(dict.fromkeys(map(int, words)))


def _progress(cell: CellResult) -> None:
    from launcher.verify.result import name

    announce(f"{name(cell)}: {cell.status}")


def _write(found: Verification, flags: Namespace) -> Path:
    from launcher.verify import certificate

    if flags.json is not None:
        certificate.save(flags.json, certificate.as_json(found))
    if flags.html is not None:
        from launcher.verify.html import page

        certificate.save(flags.html, page(found))
    return certificate.write(found, flags.output)


def _as_text(found: Verification) -> str:
    from launcher.verify.result import headline, rows, summary

    return "\n".join([bold(headline(found)), table(list(rows(found))), summary(found)])
