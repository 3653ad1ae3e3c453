"""`trainctl check`: would this run?"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import (
    Arguments,
    Composition,
    add_composition_flags,
    composition,
)
from launcher.cli._console import print_json
from launcher.errors import ConfigError, TrainctlError

if TYPE_CHECKING:
    from launcher.config.load import LoadedConfig
    from launcher.config.schema import RunConfig


def main(argv: list[str]) -> int:
    """Apply every rule, and check files and devices; start and download nothing."""
    arguments = Arguments(
        "check",
        "[group=option] [key=value]",
        "Validate a config, apply every rule, and look for the files it names. Starts no process.",
        "trainctl check data=text data.files='corpus/**/*.txt'",
        json=True,
    )
    add_composition_flags(arguments)
    help_ = "check every job of a sweep, as `run -m` would start them"
    arguments.add_argument("-m", "--multirun", action="store_true", help=help_)
    flags, overrides = arguments.split(argv)
    from launcher.launch import preflight

    try:
        loaded = [each.load() for each in _jobs(flags, overrides, arguments)]
        configs = [each.config for each in loaded]
        for config in configs:
            preflight(config)
    except TrainctlError as error:
        # A program that asks for JSON gets it for an invalid config, too, with the same status.
        if not flags.json:
            raise
        print_json({"ok": False, "problems": _problems(error)})
        return error.exit_status
    doubts = list(dict.fromkeys(doubt for each in loaded for doubt in _doubts(each)))
    facts = [_facts(config) for config in configs]
    if flags.json:
        found = {"jobs": facts} if flags.multirun else facts[0]
        print_json({"ok": True, "problems": [], "warnings": doubts, **found})
    else:
        for doubt in doubts:
            print(f"trainctl: warning: {doubt}", file=sys.stderr)
        batches = dict.fromkeys(f"{each['batch']}\n    {each['length']}" for each in facts)
        print(f"ok: {f'{len(facts)} jobs; ' if flags.multirun else ''}" + "\n    ".join(batches))
    return 0


def _jobs(flags: Namespace, overrides: Sequence[str], arguments: Arguments) -> list[Composition]:
    from launcher.config.load import refuse_code, sweep_jobs

    if not flags.multirun:
        return [composition(flags, overrides)]
    words = sweep_jobs(overrides, flags.config_dir)
    # None for a sweeper that decides on jobs while it runs. Code is refused even then.
    if not words:
        refuse_code(overrides, flags.config_name, flags.config_dir)
        arguments.error(
            "this sweeper's jobs are not known in advance; check one of them without -m"
        )
    return [composition(flags, job) for job in words]


def _doubts(loaded: LoadedConfig) -> Iterator[str]:
    from launcher.config.effects import without_effect
    from launcher.config.rules import doubtful

    yield from map(str, doubtful(loaded.config))
    # Keys of files: one that was typed is an error.
    for key, origin in without_effect(loaded.config, (), loaded.provenance).items():
        yield f"{key} has no effect ({origin})"


def _problems(error: TrainctlError) -> list[dict[str, str]]:
    if isinstance(error, ConfigError):
        found = [{"key": p.key, "message": p.message, "origin": p.origin} for p in error.problems]
    else:
        found = [{"key": "", "message": str(error), "origin": ""}]
    notes = [note.removeprefix("and: ") for note in getattr(error, "__notes__", ())]
    return [*found, *({"key": "", "message": note, "origin": ""} for note in notes)]


def _facts(config: RunConfig) -> dict[str, Any]:
    from launcher.config import derive

    plan = derive.batch_plan(config)
    return {
        "fingerprint": config.fingerprint(),
        "batch": str(plan),
        "samples_per_step": plan.samples_per_step,
        "tokens_per_step": plan.tokens_per_step,
        "length": derive.length(config),
        "max_steps": config.max_steps,
        "max_epochs": config.max_epochs,
    }
