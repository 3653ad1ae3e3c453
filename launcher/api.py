"""trainctl from Python: compose a config, run and resume it, read its results.

    from launcher.api import load_config, run

    config = load_config(["optimizer=adafactor", "max_steps=200"])
    finished = run(config)
    finished.result.scores["eval_loss"]
    finished.metrics()["loss"]
    model = finished.load_model()

A run executes in its own processes, as from the command line, and prints nothing: it can be started
from a notebook and from any thread. Errors are those of `launcher.errors`. Importing this module
imports neither torch nor Hydra.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from launcher.checkpoint import published
from launcher.contracts import PublishedCheckpoint
from launcher.errors import CheckpointError, ConfigError, LaunchError, revive
from launcher.run_dir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from launcher.config.schema import RunConfig
    from launcher.verify.result import Verification

_log = logging.getLogger("trainctl.config")

__all__ = ["PublishedCheckpoint", "Result", "Run", "load_config", "resume", "run", "verify"]


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a completed run.

    Attributes:
        step: Optimizer steps done.
        scores: The last validation scores by name.
        stopped: Reason why the run ended before its full length; None if it did not.
        sample: Generated text, if the task has some.
    """

    step: int
    scores: Mapping[str, float]
    stopped: str | None
    sample: str | None


class Run:
    """A run directory, `runs/<name>/<id>`; LaunchError if it has no run."""

    def __init__(self, path: str | Path) -> None:
        self._dir = RunDir(Path(path).expanduser().resolve())
        if not self._dir.is_run():
            raise LaunchError(f"{self._dir.path} is no run directory")

    @override
    def __repr__(self) -> str:
        return f"Run({str(self._dir.path)!r})"

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._dir.path

    @property
    def config(self) -> RunConfig:
        """Resolved config; ConfigError if config.json is not of this version."""
        from launcher.config.schema import RunConfig

        return RunConfig.read(self._dir.config)

    @property
    def result(self) -> Result:
        """Result of the run.

        Raises:
            TrainctlError: The error that ended the run.
            LaunchError: The run has not ended, or its launcher was killed.
        """
        try:
            values: dict[str, Any] = json.loads(self._dir.result.read_text(encoding="utf-8"))
            if "error" not in values:
                return Result(
                    values["step"], values["scores"], values.get("stopped"), values.get("sample")
                )
            # A rank is another process: its exception is rebuilt from what it wrote.
            error = revive(values)
        except (OSError, ValueError, KeyError, TypeError):
            raise LaunchError(
                f"{self.path} has no readable result.json: the run has not ended, or it is damaged"
            ) from None
        raise error

    def metrics(self) -> Any:
        """Return metrics.jsonl by column, as a pandas DataFrame if pandas is installed.

        Otherwise a dict of arrays, float64, shape (rows,). NaN where a row has no such number.
        """
        import numpy as np

        rows = self._rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns: dict[str, npt.NDArray[np.float64]] = {
            name: np.array([_number(row.get(name)) for row in rows], dtype=np.float64)
            for name in names
        }
        try:
            import pandas as pd  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            return columns
        return pd.DataFrame(columns)

    def checkpoints(self) -> list[PublishedCheckpoint]:
        """Return the published checkpoints, ordered by step."""
        return published(self._dir)

    def load_model(self, step: int | None = None) -> nn.Module:
        """Build the model on the CPU, with the weights of a checkpoint, in evaluation mode.

        Args:
            step: The checkpoint's step; None for the newest.

        Raises:
            CheckpointError: There is no such checkpoint, or it is damaged.
        """
        from launcher.training.runner import load_model

        found = {checkpoint.step: checkpoint for checkpoint in self.checkpoints()}
        chosen = max(found, default=None) if step is None else step
        if chosen is None or chosen not in found:
            steps = ", ".join(map(str, found)) or "none"
            what = "any step" if chosen is None else f"step {chosen}"
            raise CheckpointError(f"{self.path} has no checkpoint of {what}; there are: {steps}")
        return load_model(self.config, found[chosen].path, self._dir)

    def lr_table(self, num_samples: int | None = None) -> npt.NDArray[np.float64]:
        """Return the learning rate of every optimizer step, as the config gives it.

        Args:
            num_samples: Size of the training set; needed where the run's length is in epochs.

        Returns:
            float64, shape (max_steps,); NaN where the optimizer sets its own rate. Schedules that
            watch a score are shown as if there were no evaluation.

        Raises:
            ConfigError: The run's length depends on the size of the training set.
        """
        import numpy as np

        from launcher.config import derive

        config = self.config
        horizon = derive.horizon_before_data(config, num_samples)
        schedule = derive.schedule(config, horizon)
        rates = (_number(schedule.lr(step, {})) for step in range(horizon.max_steps))
        return np.fromiter(rates, dtype=np.float64, count=horizon.max_steps)

    def _rows(self) -> list[dict[str, Any]]:
        try:
            lines = self._dir.metrics.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        # The last line of a run that is still writing may be incomplete.
        return [json.loads(line) for line in lines if line.endswith("}")]


def load_config(
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str | Path] = (),
    *,
    config_name: str = "config",
) -> RunConfig:
    """Compose, validate and check a config, as `trainctl run` does.

    Args:
        overrides: Words in Hydra's override grammar, such as `optimizer=sgd` or `max_steps=10`.
        config_dirs: Folders of YAML, searched before the packaged one.
        config_name: The primary config.

    Returns:
        The config: frozen; `model_copy(update=…)` makes a changed one. Warnings are logged to
        `trainctl.config`.

    Raises:
        ConfigError: Every problem, with its key, its origin and a fix.
    """
    from launcher.config import load, rules

    found = load.load_config(overrides, config_name, config_dirs)
    _SOURCES[found.config.fingerprint()] = (found.provenance, tuple(overrides))
    for doubt in rules.doubtful(found.config):
        _log.warning("%s", doubt)
    return found.config


def run(config: RunConfig) -> Run:
    """Run a config to the end, in its own processes.

    Args:
        config: What `load_config` returned, or a changed copy.

    Returns:
        The run; its console output is in `logs/rank-0.log`.

    Raises:
        TrainctlError: The ranks failed, or the config, a file or a device is wrong.
    """
    from launcher.config import rules
    from launcher.launch import StartOptions, begin, preflight

    # Checked again: `model_copy` validates nothing.
    if problems := rules.broken(config):
        raise ConfigError(problems)
    preflight(config)
    provenance, overrides = _source_of(config)
    run_dir, _ = begin(config, provenance, overrides, StartOptions(quiet=True))
    return Run(run_dir.path)


def resume(path: str | Path, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> Run:
    """Resume a run from its newest good checkpoint.

    Args:
        path: The run directory.
        overrides: Settings to change, in Hydra's grammar.
        allow: Keys that may change although this changes the result.

    Returns:
        The run, after its end.

    Raises:
        TrainctlError: A change is not possible or not allowed, or the ranks failed.
    """
    from launcher.launch import StartOptions
    from launcher.launch import resume as resume_run

    known = Run(path)
    resume_run(known.path, overrides, allow, StartOptions(quiet=True))
    return known


def verify(config: RunConfig, **how: Any) -> Verification:
    """Compare the training of a config on other engines with that of one process.

    Args:
        config: What `load_config` returned, or a changed copy.
        how: `engines`, `ranks`, `accumulations`, `steps`, `shrink`: see `launcher.verify.verify`.

    Returns:
        The cells; `ok` is True if every cell that ran is equal, `check()` raises otherwise.

    Raises:
        TrainctlError: The config cannot be trained in one process.
    """
    from launcher import verify as verification

    return verification.verify(config, **how)


# Origins of the values of composed configs, by fingerprint and not in RunConfig: configs with the
# same values must be equal, whatever set them.
_SOURCES: dict[str, tuple[Mapping[str, str], Sequence[str]]] = {}


def _source_of(config: RunConfig) -> tuple[Mapping[str, str], Sequence[str]]:
    if source := _SOURCES.get(config.fingerprint()):
        return source
    from launcher.config.problems import leaves

    values = config.model_dump(mode="json")
    return {key: "set in Python" for key, _ in leaves(values)}, ()


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
