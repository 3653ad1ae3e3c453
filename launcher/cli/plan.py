"""`trainctl plan`: memory, speed and traffic of a config before a start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import bold, print_json, table
from launcher.cli.memory import size_text

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.plan import Change, Plan

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SHOWN = 5


def main(argv: list[str]) -> int:
    """Plan a config; with a memory also what makes it fit."""
    arguments = Arguments(
        "plan",
        "[group=option] [key=value]",
        "What a run needs on the rank that needs most, without allocating weights: memory by phase "
        "and part, operations, traffic and disk. 1 GB is 10^9 bytes, 1 GiB is 2^30.",
        "trainctl plan model=llama_8b precision=bf16 --memory 80GiB",
        "trainctl plan model=llama_1b parallelism=fsdp --ranks 8 --memory 24GiB --search",
        json=True,
    )
    add_composition_flags(arguments)
    arguments.add_argument("--ranks", metavar="N", type=int, help="number of ranks")
    arguments.add_argument("--memory", metavar="SIZE", help="memory of a rank's device, as 80GiB")
    arguments.add_argument(
        "--search", action="store_true", help="find the cheapest combination of changes that fits"
    )
    arguments.add_argument(
        "--tflops", metavar="X", type=float, help="peak of a device in 10^12 operations per second"
    )
    flags, overrides = arguments.split(argv)
    memory = None if flags.memory is None else _bytes(arguments, flags.memory)
    if flags.search and memory is None:
        arguments.error("--search needs --memory SIZE")
    words = [] if flags.ranks is None else [f"launch.processes={flags.ranks}"]
    base = composition(flags, [*overrides, *words])

    def load(more: Sequence[str]) -> RunConfig:
        return replace(base, overrides=[*base.overrides, *more]).load().config

    from launcher.plan import Planner, best_combination, single_changes

    planner = Planner()
    plan = planner.plan(load([]), memory)
    changes: list[Change] = []
    found = None
    if memory is not None and plan.peak > memory:
        changes = single_changes(planner, load, plan, memory)
        if flags.search:
            found = best_combination(planner, load, plan, memory)
    if flags.json:
        print_json(_as_json(plan, memory, changes, found, flags))
        return 0
    print(_as_text(plan, memory, flags.tflops))
    if changes:
        print("\n" + _changes_text(changes))
    if flags.search and memory is not None and plan.peak > memory:
        print("\n" + _combination_text(found))
    return 0


def _bytes(arguments: Arguments, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.lower())
    if match is None:
        arguments.error(f"--memory must be a size such as 80GiB, but is {text!r}")
    unit = match[2] or ""
    return int(float(match[1]) * {**_UNITS, **_BINARY}[unit])


def _as_json(
    plan: Plan, memory: int | None, changes: Sequence[Change], found: Change | None, flags: Any
) -> dict[str, Any]:
    values = plan.to_json()
    if memory is not None:
        values |= {"memory_bytes": memory, "fits": plan.peak <= memory}
        values["changes"] = [_change_json(change) for change in changes]
    if flags.search:
        values["combination"] = None if found is None else _change_json(found)
    if flags.tflops is not None:
        values["tokens_per_second_at_peak"] = _tokens_per_second(plan, flags.tflops)
    return values


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "overrides": list(change.words),
        "peak_bytes": change.plan.peak,
        "fits": change.fits,
        "more_flops": change.more_flops,
        "price": change.price,
    }


def _as_text(plan: Plan, memory: int | None, tflops: float | None) -> str:
    head = bold(f"{plan.parameters:,} parameters")
    trained = "" if plan.trained == plan.parameters else f", {plan.trained:,} trained"
    ranks = f", {plan.ranks} ranks" if plan.ranks > 1 else ""
    parts = plan.phases[plan.peak_phase]
    rows = [("memory", f"of a rank, in its highest phase ({plan.peak_phase})")]
    rows += [(f"  {name}", size_text(size)) for name, size in parts.items() if size]
    fits = ""
    if memory is not None:
        verdict = "fits into" if plan.peak <= memory else "does not fit into"
        fits = f", {verdict} {size_text(memory)}"
    rows.append(("  peak", f"{size_text(plan.peak)}{fits}"))
    others = {name: sum(sizes.values()) for name, sizes in plan.phases.items()}
    rows.append(("other phases", _listed(others, plan.peak_phase)))
    if memory is not None:
        largest = plan.largest_micro_batch or "none"
        text = f"{plan.micro_batch_size}, the largest that fits is {largest}"
        rows.append(("micro-batch", text))
    rows.append(("host memory", size_text(plan.host)))
    rows.append(("checkpoint", f"{size_text(plan.checkpoint)} on disk"))
    if plan.sent:
        rows.append(("traffic", f"{size_text(plan.sent)} sent by a rank in a step"))
    speed = f"{plan.flops / 1e12:.3g} x 10^12 operations per step of {plan.tokens:,} tokens"
    if tflops is not None:
        rate = _tokens_per_second(plan, tflops)
        speed += f"; at most {rate:,.0f} tokens/s at {tflops:g} TFLOP/s and an MFU of 100 %"
    rows.append(("compute", speed))
    return f"{head}{trained}{ranks}\n{table(rows)}"


def _listed(sizes: Mapping[str, int], left_out: str) -> str:
    return ", ".join(f"{k} {size_text(v)}" for k, v in sizes.items() if k != left_out)


def _tokens_per_second(plan: Plan, tflops: float) -> float:
    return tflops * 1e12 * plan.ranks * plan.tokens / plan.flops


def _changes_text(changes: Sequence[Change]) -> str:
    rows = [("single change", "peak", "", "cost")]
    rows += [
        (
            " ".join(change.words),
            size_text(change.plan.peak),
            "fits" if change.fits else "does not fit",
            _price(change),
        )
        for change in changes
    ]
    return table(rows)


def _combination_text(found: Change | None) -> str:
    if found is None:
        return "no combination of these changes fits"
    words, size = " ".join(found.words), size_text(found.plan.peak)
    return f"{bold('cheapest combination that fits')}\n{words}  ({size}; {_price(found)})"


def _price(change: Change) -> str:
    more = f" ({change.more_flops:+.0%} operations)" if abs(change.more_flops) >= 0.005 else ""
    return f"{change.price}{more}"
