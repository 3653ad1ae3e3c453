"""Resume a run: checks, changed settings, start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.checkpoint import published
from launcher.config.resume_rules import apply
from launcher.config.schema import RunConfig
from launcher.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LaunchError,
    Preempted,
    Problem,
    TrainctlError,
)
from launcher.launch import StartOptions, _stored
from launcher.launch._begin import await_result, preflight, run_ranks
from launcher.launch._lock import locked
from launcher.launch._outcome import Result, completed
from launcher.run_dir import RunDir


def resume(
    path: Path, overrides: Sequence[str], allow: Sequence[str], options: StartOptions
) -> Result | None:
    result = _resume(path, overrides, allow, options)
    if result is None and options.node is None:
        run_dir = RunDir(path.resolve())
        return await_result(RunConfig.read(run_dir.config), run_dir, quiet=options.quiet)
    return result


def _resume(
    path: Path, overrides: Sequence[str], allow: Sequence[str], options: StartOptions
) -> Result | None:
    # The same directory by any path, links included.
    run_dir = RunDir(path.resolve())

    def say(text: str) -> None:
        if not options.quiet:
            print(text)  # noqa: T201 - a change of the run is shown

    try:
        with locked(run_dir) as lock:
            # First of all: everything below must see the settings that the run was saved with.
            if dropped := _stored.undo_killed(run_dir):
                say(
                    f"{' '.join(dropped)}: not applied, because the resume that set it was killed "
                    "before it saved; repeat it if you want it"
                )
            stored = _stored.verified_config(run_dir, overrides)
            config, changes = apply(stored, overrides, allow)
            if not changes and (result := completed(run_dir)) is not None:
                say(_finished(result, run_dir, config))
                return result
            _check_resumable(config, run_dir)
            preflight(config)
            # Nothing has been written so far: a resume that is refused leaves the run as it was.
            _stored.adopt(run_dir, stored)
            if not changes:
                return run_ranks(config, run_dir, lock, options)
            for change in changes:
                say(f"{change.key}: {json.dumps(change.old)} -> {json.dumps(change.new)}")
            saved = _saved(run_dir)
            _stored.change(run_dir, config.to_json(), overrides)
            try:
                result = run_ranks(config, run_dir, lock, options)
            except TrainctlError as error:
                # A run that was asked to stop continues with these settings.
                if isinstance(error, Preempted | Interrupted) or _saved(run_dir) != saved:
                    _stored.keep(run_dir)
                else:
                    _stored.undo(run_dir)
                    say("the old settings are restored: nothing was saved with the new ones")
                raise
            _stored.keep(run_dir)
            return result
    except OSError as error:
        place = error.filename or run_dir.path
        raise LaunchError(f"cannot resume {run_dir.path}: {place}: {error.strerror}") from error


def _check_resumable(config: RunConfig, run_dir: RunDir) -> None:
    """Refuse to train from step 0 over the metrics of an earlier launch, or backwards."""
    if config.checkpoint.has_saved(run_dir):
        step = max((checkpoint.step for checkpoint in published(run_dir)), default=0)
        if config.max_steps is not None and config.max_steps < step:
            message = f"is {config.max_steps:,}, but the run is at step {step:,}; set a later end"
            raise ConfigError([Problem("max_steps", message)])
        return
    if run_dir.has_rows():
        raise CheckpointError(
            f"{run_dir.path} has no checkpoint to resume from: it would start at step 0 and "
            f"replace {run_dir.metrics.name}. To start a new run: sh {run_dir.command}"
        )


def _finished(result: Result, run_dir: RunDir, config: RunConfig) -> str:
    done = f"nothing to do: the run is finished (step {result.step:,})"
    if not config.checkpoint.has_saved(run_dir):
        return f"{done}, and has no checkpoint to continue from"
    more = f"max_steps={2 * result.step}" if result.stopped is None else "observer=none"
    return f"{done}; train longer with: trainctl resume {run_dir.path} {more}"


def _saved(run_dir: RunDir) -> set[str]:
    return {path.name for path in run_dir.checkpoints.glob("step-*")}
