"""Run `run -m` and Hydra's own flags (`--cfg`, `--info`, `--hydra-help`) through hydra.main."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
import hydra._internal.hydra as _hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from launcher.config import _hydra_ext
from launcher.config._hydra_settings import QUIET, CheckedLoader
from launcher.config._interpolation import resolved
from launcher.config.compose import Composed, compose
from launcher.config.load import LoadedConfig, load_jobs, refuse_code, validate
from launcher.config.paths import CONF, expand_home
from launcher.errors import Interrupted, Preempted, Problem, TrainctlError


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a job among those of a sweep.

    Attributes:
        number: Number of the job, from 1.
        of: Number of jobs.
        folder: Folder of the sweep, next to the runs.
    """

    number: int
    of: int
    folder: Path


Launch = Callable[[LoadedConfig, Sequence[str], Place | None], float | None]
"""Run one job to its end, given config, overrides and place; return the score that a sweeper
optimises. The place is None where the sweeper determines the jobs while it runs."""


def run_multirun(
    launch: Launch,
    argv: Sequence[str],
    *,
    admit: Callable[[Sequence[LoadedConfig]], bool],
    ended: Callable[[Path], None] = lambda _: None,
) -> int:
    """Run Hydra's command line, after checking every job's config, and return the exit status.

    Args:
        launch: Runs a job, in this process or wherever `hydra/launcher=…` starts it.
        argv: Overrides and Hydra's flags; `--config-dir` may be repeated.
        admit: Called with the configs of all jobs before the first one starts (with none, if the
            sweeper determines them while it runs); False starts none.
        ended: Called with the folder of the sweep when its last job has ended.

    Raises:
        ConfigError: The problems of all jobs' configs.
        TrainctlError: The error of the first failed job, after the other jobs have ended; Ctrl-C
            and preemption end the sweep at once.
    """
    # hydra.main calls the launcher as its task, which starts ranks as child processes: so Hydra's
    # launchers (basic, joblib, submitit) and every sweeper work unchanged.
    own, rest = _flags(argv)
    flags = get_args_parser().parse_intermixed_args(rest)
    options = [word for word in rest if word not in flags.overrides]
    typed = expand_home(flags.overrides)
    jobs: Sequence[LoadedConfig] = ()
    folder: Path | None = None
    if not (flags.cfg or flags.info or flags.help or flags.hydra_help or flags.shell_completion):
        jobs = load_jobs(typed, own.config_name, own.config_dir)
        if not jobs:
            refuse_code(typed, own.config_name, own.config_dir)
        if not admit(jobs):
            return 0
        folder = _sweep_dir(jobs[0]) if jobs else None

    def task(cfg: DictConfig) -> float | None:
        now = HydraConfig.get()
        overrides = list(now.overrides.task)
        place = None if folder is None else Place(int(now.job.num) + 1, len(jobs), folder)
        try:
            return launch(_checked(cfg, overrides, own), overrides, place)
        except (Interrupted, Preempted) as stop:
            # After an Exception Hydra starts the next job; SystemExit ends the sweep.
            raise SystemExit(stop.exit_status) from stop

    # Words of trainctl come first, so that the user's win. After the flags, because Hydra 1.3 takes
    # all words in one place.
    words = ["--config-name", own.config_name, *options, *_own_words(folder), *typed]
    main = hydra.main(config_path=str(CONF), config_name=own.config_name, **_hydra_ext.base())
    try:
        with _hydra_ext.search_path_of(own.config_dir), _process(["trainctl", *words]):
            main(task)()
    except SystemExit as end:
        return _status(end)
    finally:
        if folder is not None:
            ended(folder)
    return 0


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our flags, which extend Hydra's of the same names, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--config-name", "-cn", default="config")
    return parser.parse_known_args(argv)


def _status(end: SystemExit) -> int:
    """Return the exit status, or raise the error that ended the sweep."""
    if isinstance(end.__cause__, TrainctlError):
        raise end.__cause__ from end
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _own_words(folder: Path | None) -> Iterator[str]:
    """Yield the settings of Hydra that trainctl makes."""
    yield from (f"{key}={json.dumps(value)}" for key, value in QUIET.items())
    yield from ("hydra/hydra_logging=none", "hydra/job_logging=none")
    if folder is not None:
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        yield f"hydra.sweep.dir='{quoted}'"


def _sweep_dir(first: LoadedConfig) -> Path:
    """Return the sweep's folder, next to the runs."""
    # A random part: two sweeps that start in the same second must not share a folder.
    sweep = f"sweep-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path(first.config.run_root).absolute() / first.config.name / sweep


def _checked(cfg: DictConfig, overrides: Sequence[str], own: argparse.Namespace) -> LoadedConfig:
    """Return the config of a job as Hydra composed it, validated, with origins."""
    # Validated again, because the sweeper may have chosen values that no earlier check has seen.
    problems: list[Problem] = []
    mapping = resolved(cfg, problems)
    origins = compose(overrides, own.config_name, own.config_dir).origins
    return validate(Composed(mapping, origins), problems)


@contextmanager
def _process(program: list[str]) -> Iterator[None]:
    """Set what hydra.main reads: sys.argv, full tracebacks, and its loader."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = program, "1"
    # Hydra has no setting for its loader.
    loader, _hydra.ConfigLoaderImpl = _hydra.ConfigLoaderImpl, CheckedLoader
    try:
        yield
    finally:
        sys.argv = argv
        _hydra.ConfigLoaderImpl = loader
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
