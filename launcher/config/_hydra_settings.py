"""Hydra's own settings that a config may contain, and keys that name code to run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from launcher.config._interpolation import ONLY_ALIASES, has_resolver
from launcher.config.problems import leaves
from launcher.errors import ConfigError, Problem

# Hydra executes the settings of its `hydra` node before any job's config is validated: logging
# configs and callbacks call what they name, `env_set` sets variables of the process, a search path
# `pkg://x` imports x. So only plain data is allowed. It is checked twice: where a file or a word
# writes it (`refusal`, with the origin), and in the composed config (`CheckedLoader`), because the
# files of a sweeper's jobs are known only when Hydra reads them.

# `hydra.utils.instantiate` calls what the first two name, `logging.config` what the last does.
CODE_KEYS = frozenset({"_target_", "_args_", "()"})
NO_CODE = "a config cannot name code to run"
NOT_ALLOWED = "cannot be set in trainctl"

# Prefixes of the names of search path entries that are not of Hydra, a plugin or conf/.
FOREIGN = ("user", "recipes", "extension")
# Switch off Hydra's outputs: only trainctl writes a run directory.
QUIET: dict[str, Any] = {
    "hydra.job.name": "trainctl",
    "hydra.job.chdir": False,
    "hydra.output_subdir": None,
    "hydra.run.dir": ".",
    "hydra.sweep.subdir": ".",
}

_JOBLIB = ("n_jobs", "verbose", "timeout", "prefer", "require", "batch_size")
# Without `setup`, `python` and `srun_args`: lines of the shell script that Slurm runs.
_SUBMITIT = (
    *("timeout_min", "cpus_per_task", "gpus_per_node", "gpus_per_task", "tasks_per_node", "nodes"),
    *("mem_gb", "mem_per_gpu", "mem_per_cpu", "cpus_per_gpu", "name", "partition", "qos"),
    *("account", "comment", "constraint", "exclude", "gres", "array_parallelism"),
    *("max_num_timeout", "signal_delay_s", "stderr_to_stdout", "submitit_folder"),
)
# Without `custom_search_space`: the dotted path of a function.
_OPTUNA = ("n_trials", "n_jobs", "direction", "study_name", "storage", "max_failure_rate", "seed")
_NEVERGRAD = ("budget", "num_workers", "noisy", "maximize")
_ALLOWED = frozenset(
    {
        *("hydra.sweep.dir", "hydra.verbose", "hydra.sweeper.max_batch_size"),
        *(f"hydra.launcher.{name}" for name in (*_JOBLIB, *_SUBMITIT)),
        *(f"hydra.sweeper.{name}" for name in _OPTUNA),
        *(f"hydra.sweeper.optim.{name}" for name in _NEVERGRAD),
    }
)
_ALLOWED_BELOW = ("hydra.sweeper.params.", "hydra.sweeper.sampler.")
_GROUPS = re.compile(r"hydra/(launcher|sweeper)(/\w+)*")
# Written by Hydra at each composition; nothing executes them.
_RECORDED = ("hydra.runtime.", "hydra.overrides.", "hydra.job.", "hydra.mode")
_ADVICE = {
    "hydra.searchpath": "name the folder with --config-dir",
    "hydra.run": "write run_root=DIR and name=NAME",
    "hydra.job.name": "write name=NAME",
    "hydra.job.env_set": "set environment variables in the shell",
    "hydra.job.env_copy": "set environment variables in the shell",
    "hydra.job.chdir": "leave it out: trainctl never changes the working directory",
    "hydra.output_subdir": "leave it out: a run directory holds its own record",
    "hydra.sweep.subdir": "write run_root=DIR and name=NAME",
    "hydra.mode": "give -m for a sweep",
    "hydra.job_logging": "choose logging=OPTION",
    "hydra.hydra_logging": "choose logging=OPTION",
    "hydra.callbacks": "choose observer=OPTION",
}
_GENERAL_ADVICE = (
    "leave it out; only the size and place of a sweep can be set, with hydra.sweep.dir, "
)
_GENERAL_ADVICE += "hydra.launcher.*, hydra.sweeper.*, hydra/launcher=NAME and hydra/sweeper=NAME"


def no_code(key: str) -> str:
    """Return the error message for a key that names code."""
    return f"{NO_CODE}: {key} is not allowed"


def code_key(value: Any) -> str | None:
    """Return a key that names code, anywhere in a value, if there is one."""
    if isinstance(value, Mapping):
        named = next((str(key) for key in value if str(key) in CODE_KEYS), None)
        return named or code_key([*value.values()])
    if isinstance(value, list | tuple):
        return next(filter(None, map(code_key, value)), None)
    return None


def refusal(key: str, value: Any, *, chosen: bool = False) -> str | None:
    """Return why a setting of Hydra is not allowed; None if it is allowed, or not Hydra's.

    Args:
        key: Dotted key, or a group.
        value: Its value.
        chosen: True if an option of a group is chosen.
    """
    if re.split(r"[./@]", key)[0] != "hydra":
        return None
    if chosen or "/" in key:
        plain = _GROUPS.fullmatch(key) and isinstance(value, str)
        return None if plain else _instead(key.replace("/", "."))
    # A list of what is allowed, and not of what is dangerous: a new version of Hydra or of a plugin
    # may add settings that run code.
    for leaf, each in leaves({key: value}):
        if leaf not in _ALLOWED and not leaf.startswith(_ALLOWED_BELOW):
            return _instead(leaf)
        if problem := _not_plain(each):
            return problem
    return None


def _instead(key: str) -> str:
    advice = next(
        (advice for known, advice in _ADVICE.items() if f"{key}.".startswith(f"{known}.")), ""
    )
    return f"{NOT_ALLOWED}; {advice or _GENERAL_ADVICE}"


def _not_plain(value: Any) -> str | None:
    """Return why a value of an allowed key is not plain data on one line, or None."""
    if found := code_key(value):
        return no_code(found)
    for text in _texts(value):
        if has_resolver(text):
            return f"{ONLY_ALIASES}, but it is {text!r}"
        if not text.isprintable():
            return f"must be text on one line, but is {text!r}"
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


class NoSearchPathLoader(ConfigLoaderImpl):  # type: ignore[misc] # Hydra types only its public names
    """Hydra's loader without `hydra.searchpath`, which imports the packages that it names."""

    @override
    def _process_config_searchpath(
        self, config_name: Any, parsed_overrides: Any, repo: Any
    ) -> None: ...


class CheckedLoader(NoSearchPathLoader):
    """Loader for hydra.main, which checks all that differs from Hydra's packaged settings."""

    # Every composition is done here before Hydra uses it, also of the jobs of a sweeper.

    @override
    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, **options: Any
    ) -> DictConfig:
        cfg: DictConfig = super().load_configuration(config_name, overrides, run_mode, **options)
        if problems := list(self._refused(cfg, run_mode)):
            raise ConfigError(problems)
        return cfg

    def _refused(self, cfg: DictConfig, run_mode: RunMode) -> Iterator[Problem]:
        found = _plain(cfg)
        words = [
            f"{group}={option}"
            for group, option in found["runtime"]["choices"].items()
            if group.startswith("hydra/") and option is not None
        ]
        try:
            packaged = _plain(self._packaged().load_configuration(None, words, run_mode))
        except HydraException:
            reason = "must be an option of Hydra or of an installed plugin"
            yield Problem(" ".join(words), reason)
            return
        expected = dict(leaves({"hydra": packaged})) | QUIET
        for key, value in leaves({"hydra": found}):
            recorded = key.startswith(_RECORDED) and not key.startswith("hydra.job.env")
            same = key in expected and expected[key] == value
            if not recorded and not same and (problem := refusal(key, value)):
                yield Problem(key, problem)

    def _packaged(self) -> NoSearchPathLoader:
        """Return a loader without the folders of the user and of third parties."""
        path = deepcopy(self.config_search_path)
        elements = path.get_path()
        elements[:] = [each for each in elements if not each.provider.startswith(FOREIGN)]
        return NoSearchPathLoader(path)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(cfg.hydra, resolve=False)
    assert isinstance(values, dict)  # noqa: S101 - the schema of Hydra says so
    return {str(key): value for key, value in values.items()}
