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

Launch = Callable[[LoadedConfig, Sequence[str]], float | None]
"""Run one job to its end, given config and overrides; return the score that a sweeper optimises."""


def run_multirun(
    launch: Launch, argv: Sequence[str], *, admit: Callable[[Sequence[LoadedConfig]], bool]
) -> int:
    """Run Hydra's command line, after checking every job's config, and return the exit status.

    Args:
        launch: Runs a job, in this process or wherever `hydra/launcher=…` starts it.
        argv: Overrides and Hydra's flags; `--config-dir` may be repeated.
        admit: Called with the configs of all jobs before the first one starts (with none, if the
            sweeper determines them while it runs); False starts none.

    Raises:
        ConfigError: The problems of all jobs' configs.
        TrainctlError: The error of the first failed job, after the other jobs have ended; Ctrl-C
            and preemption end the sweep at once.
    """
    # hydra.main calls the launcher as its task, which starts ranks as child processes: so Hydra's
    # basic, joblib and submitit launchers and every sweeper work unchanged.
    own, rest = _flags(argv)
    flags = get_args_parser().parse_intermixed_args(rest)
    options = [word for word in rest if word not in flags.overrides]
    flags.overrides = expand_home(flags.overrides)
    words = [f"{key}={json.dumps(value)}" for key, value in QUIET.items()]
    words += ["hydra/hydra_logging=none", "hydra/job_logging=none"]
    if not (flags.cfg or flags.info or flags.help or flags.hydra_help or flags.shell_completion):
        jobs = load_jobs(flags.overrides, own.config_name, own.config_dir)
        if not jobs:
            refuse_code(flags.overrides, own.config_name, own.config_dir)
        if not admit(jobs):
            return 0
        if jobs:
            words.append(_sweep_dir(jobs[0]))
    stops: list[TrainctlError] = []

    def task(cfg: DictConfig) -> float | None:
        overrides = list(HydraConfig.get().overrides.task)
        try:
            return launch(_checked(cfg, overrides, own.config_name, own.config_dir), overrides)
        except (Interrupted, Preempted) as stop:
            # After an Exception Hydra starts the next job; SystemExit ends the sweep.
            stops.append(stop)
            raise SystemExit(stop.exit_status) from stop

    # Words of trainctl come first, so that the user's win. After the flags, because Hydra 1.3 takes
    # all words in one place.
    program = ["trainctl", "--config-name", own.config_name, *options, *words, *flags.overrides]
    try:
        with _hydra_ext.search_path_of(own.config_dir), _process(program):
            hydra.main(config_path=str(CONF), config_name=own.config_name, **_hydra_ext.base())(
                task
            )()
    except SystemExit as end:
        if stops:
            raise stops[0] from end
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our flags, which extend Hydra's of the same names, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--config-name", "-cn", default="config")
    return parser.parse_known_args(argv)


def _sweep_dir(first: LoadedConfig) -> str:
    """Return Hydra's setting of the sweep's folder, next to the runs."""
    # A random part: two sweeps that start in the same second must not share a folder.
    sweep = f"sweep-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    path = Path(first.config.run_root).absolute() / first.config.name / sweep
    quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{quoted}'"


def _checked(
    cfg: DictConfig, overrides: Sequence[str], config_name: str, config_dirs: Sequence[str]
) -> LoadedConfig:
    """Return the config of a job as Hydra composed it, validated, with origins."""
    # Validated again, because the sweeper may have chosen values that no earlier check has seen.
    problems: list[Problem] = []
    mapping = resolved(cfg, problems)
    origins = compose(overrides, config_name, config_dirs).origins
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
