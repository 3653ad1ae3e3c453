"""`trainctl run`: compose, check everything, then train."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli import _jobs
from launcher.cli._arguments import Arguments, add_composition_flags
from launcher.cli._console import announce

if TYPE_CHECKING:
    from argparse import Namespace

    from launcher.config.load import LoadedConfig
    from launcher.config.multirun import Place
    from launcher.config.schema import RunConfig
    from launcher.launch._early import EarlyRank
    from launcher.launch._outer import OuterWorld


def main(argv: list[str]) -> int:
    """Train, or show the run without starting it."""
    arguments = _arguments()
    argv = _with_flags(argv)
    flags, overrides = arguments.split(argv)
    if flags.multirun and (flags.cfg or flags.info or flags.hydra_help):
        arguments.error(
            "-m starts jobs, and --cfg, --info and --hydra-help start none; leave -m out"
        )
    from launcher.launch import outer_world, signals_end_launch

    # Under torchrun or srun this program runs once per rank: only the first one may start a run.
    if (world := outer_world()) is not None:
        with signals_end_launch():
            return _run_in(world, flags, argv, overrides)
    if flags.multirun or flags.cfg or flags.info or flags.hydra_help or flags.dry_run:
        with signals_end_launch():
            return _run(flags, argv, overrides, None)
    from launcher.launch._early import EarlyRank

    # It imports torch while this process composes the config. The context kills it on every error.
    with signals_end_launch(), EarlyRank() as early:
        return _run(flags, argv, overrides, early)


def _run_in(world: OuterWorld, flags: Namespace, argv: list[str], overrides: Sequence[str]) -> int:
    """Run as one rank of the world that torchrun, deepspeed, srun or mpirun has started."""
    from launcher.errors import LaunchError
    from launcher.launch import follow

    if flags.multirun:
        raise LaunchError(
            f"{world.program} has started {world.size} ranks for one run, and -m starts several: "
            "start trainctl run -m once, with launch.processes=N"
        )
    if not world.is_first:
        return follow(world)
    with world.released():
        words = [*overrides, f"launch.processes={world.size}"]
        return _run(flags, argv, words, None, world)


def _run(
    flags: Namespace,
    argv: list[str],
    overrides: Sequence[str],
    early: EarlyRank | None,
    node: OuterWorld | None = None,
) -> int:
    from launcher.config.load import load_config

    def admit(jobs: Sequence[LoadedConfig]) -> bool:
        from launcher.config.rules import doubtful
        from launcher.launch import preflight

        # Called with all jobs before the first one starts, so that a sweep does not fail after
        # hours because a file of its last job is missing.
        for job in jobs:
            for doubt in doubtful(job.config):
                print(f"trainctl: warning: {doubt}", file=sys.stderr)
            preflight(job.config)
            if flags.dry_run:
                print(_plan(job))
        return not flags.dry_run

    if flags.multirun or flags.cfg or flags.info or flags.hydra_help:
        from launcher.config.multirun import run_multirun

        # Hydra would print a config that does not validate.
        if flags.cfg or flags.info:
            load_config(overrides, flags.config_name, flags.config_dir)
        # Hydra's parser does not know it.
        own = {"--dry-run", "--dry_run"}
        words = [word for word in argv if word not in own]
        return run_multirun(_run_job, words, admit=admit, ended=_jobs.summarise)
    job = load_config(overrides, flags.config_name, flags.config_dir)
    if admit([job]):
        from launcher.config import derive

        announce(f"starting {job.config.name}: {derive.length(job.config)}, in a few seconds")
        _launch(job, overrides, early, node)
    return 0


def _with_flags(argv: list[str]) -> list[str]:
    """Return the words with those after `--` as `launch.flags`."""
    if "--" not in argv:
        return argv
    at = argv.index("--")
    # Hydra reads JSON's lists of strings.
    return [*argv[:at], f"launch.flags={json.dumps(argv[at + 1 :], ensure_ascii=False)}"]


def _arguments() -> Arguments:
    parser = Arguments(
        "run",
        "[group=option] [key=value]",
        "Compose a config, check it, and train. Every word is a Hydra override; words after -- are "
        "options of torchrun, deepspeed or sbatch.",
        "trainctl run",
        "trainctl run optimizer=sgd optimizer.lr=0.1 max_steps=200",
        "trainctl run -m optimizer.lr=1e-3,3e-3 seed=0,1",
    )
    add_composition_flags(parser)
    add = parser.add_argument
    add("-m", "--multirun", action="store_true", help="one job per combination of values")
    add("--dry-run", action="store_true", help="print what would run, and start nothing")
    add("--cfg", "-c", choices=["job", "hydra", "all"], help="show Hydra's composed config")
    add("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    add("--package", "-p", help="with --cfg: only this part")
    add(
        "--info",
        "-i",
        nargs="?",
        const="all",
        choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
        help="show how Hydra composed the config",
    )
    add("--hydra-help", action="store_true", help="Hydra's own help")
    return parser


def _launch(
    one: LoadedConfig,
    overrides: Sequence[str],
    early: EarlyRank | None = None,
    node: OuterWorld | None = None,
    job: _jobs.Job | None = None,
) -> float | None:
    """Run one job to the end and return the number that a sweeper minimises."""
    from launcher.launch import StartOptions, begin
    from launcher.verify import certificate

    if (sameness := certificate.status(one.config)) is not None:
        print(f"sameness   {sameness}", flush=True)
    options = StartOptions(early, node, created=job.created if job else None)
    _, result = begin(one.config, one.provenance, overrides, options)
    if job is not None and result is not None:
        job.completed(result.scores.get(one.config.objective))
    return None if result is None else minimised(one.config, result.scores)


def _run_job(
    one: LoadedConfig, overrides: Sequence[str], place: Place | None = None
) -> float | None:
    """Run one job of a sweep, and record how it ended."""
    if place is None:
        return _launch(one, overrides)
    from launcher.errors import TrainctlError

    print(f"job {place.number}/{place.of}    {' '.join(overrides)}", flush=True)
    job = _jobs.Job(place, one.config.objective, overrides)
    try:
        return _launch(one, overrides, job=job)
    except TrainctlError as error:
        # Printed here: Hydra goes on to the next job, and the sweep's own error is the first one.
        job.failed(error)
        print(
            f"job {place.number}/{place.of}    {job.status}: {error}", file=sys.stderr, flush=True
        )
        raise
    finally:
        job.write()


def minimised(config: RunConfig, scores: Mapping[str, float]) -> float | None:
    """Return the number that a sweeper minimises; None if the score is missing or not finite."""
    # A sweeper compares numbers, and NaN is neither smaller nor larger than any.
    score = scores.get(config.objective)
    if score is None or not math.isfinite(score):
        return None
    return -score if config.objective_mode == "max" else score


def _plan(one: LoadedConfig) -> str:
    """Return the description of a run that is not started."""
    from launcher.config import derive
    from launcher.run_dir import RunDir

    config = one.config
    # `ID` as it is: a real one is made together with the directory, and here nothing is created.
    run_dir = RunDir(Path(config.run_root).absolute() / config.name / "ID")
    return "\n".join(
        [
            f"run        {run_dir.path}",
            f"config     {config.fingerprint()}",
            f"batch      {derive.batch_plan(config)}",
            f"length     {derive.length(config)}",
            config.launch.preview(run_dir),
        ]
    )
