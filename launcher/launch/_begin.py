"""Start a new run."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launcher import run_dir as run_dirs
from launcher.config.columns import check_first_records
from launcher.config.rules import unsupported
from launcher.config.schema import RunConfig
from launcher.contracts import GROUPS, Option
from launcher.errors import (
    ConfigError,
    DataError,
    Interrupted,
    LaunchError,
    Preempted,
    TrainctlError,
)
from launcher.launch import StartOptions
from launcher.launch._fit import find_micro_batch_size
from launcher.launch._lock import locked
from launcher.launch._machine import facts, launch_recorded
from launcher.launch._outcome import Result, ended
from launcher.launch._start import start
from launcher.run_dir import RunDir, write_atomically


def preflight(config: RunConfig) -> None:
    found: list[TrainctlError] = []
    possible = [list(unsupported(config, device)) for device in config.launch.possible_devices()]
    # With `auto` only the ranks know the device, so it is an error only if no device supports it.
    if all(possible):
        found.append(ConfigError(possible[0]))
    # All of them, not the first only: each correction costs the user another start.
    for group in GROUPS:
        option: Option = getattr(config, group)
        try:
            option.preflight()
        except TrainctlError as error:
            found.append(error)
    if not found:
        # After the options' own checks, which report unreadable files in their words.
        check_first_records(config)
    if found:
        for other in found[1:]:
            found[0].add_note(f"and: {other}")
        raise found[0]


def begin(
    config: RunConfig,
    provenance: Mapping[str, str],
    overrides: Sequence[str],
    options: StartOptions,
) -> tuple[RunDir, Result | None]:
    # The lock before anything is written: no other process may take the directory for its own.
    run_dir = run_dirs.create(Path(config.run_root), config.name)
    if options.created is not None:
        options.created(run_dir.path)
    with locked(run_dir) as lock:
        _write_down(config, provenance, overrides, run_dir)
        try:
            result = run_ranks(config, run_dir, lock, options)
        except TrainctlError as error:
            _discard_failed(run_dir, config, error)
            raise
    return run_dir, await_result(config, run_dir, quiet=options.quiet) if result is None else result


def await_result(config: RunConfig, run_dir: RunDir, *, quiet: bool) -> Result | None:
    """Wait for ranks that other launchers run, if that is configured, and return their result.

    The caller must have released the run directory: one of those launchers locks it.
    """
    saved = config.checkpoint.has_saved
    try:
        if not config.launch.await_end(run_dir):
            return None
        result = ended(run_dir)
    except (Preempted, Interrupted) as error:
        if saved(run_dir) and not getattr(error, "__notes__", ()):
            error.add_note(f"resume with: {_resume_command(run_dir)}")
        raise
    if not quiet:
        print_result(result, run_dir, can_resume=saved(run_dir))
    return result


def _discard_failed(run_dir: RunDir, config: RunConfig, error: TrainctlError) -> None:
    # A directory for each typing mistake would bury the real runs.
    stopped = isinstance(error, Preempted | Interrupted)
    if stopped or run_dir.has_rows() or config.checkpoint.has_saved(run_dir):
        return
    if not run_dir.is_run():
        error.add_note(f"{run_dir.path} was deleted while the run used it")
    elif isinstance(error, ConfigError | DataError):
        # The message contains everything that is in the directory.
        shutil.rmtree(run_dir.path, ignore_errors=True)
    else:
        error.add_note(f"nothing was trained: {run_dir.path} has only logs, and may be deleted")


def run_ranks(
    config: RunConfig,
    run_dir: RunDir,
    lock: Sequence[int],
    options: StartOptions,
) -> Result | None:
    """Run the ranks to the end, and print the result; used by `begin`, `resume` and `join`.

    Returns:
        None where launchers on other nodes will start the ranks.
    """
    if options.node is None and (started := config.launch.hand_over(run_dir)) is not None:
        if not options.quiet:
            print(started)  # noqa: T201 - how to start the nodes
        return None
    try:
        with launch_recorded(run_dir):
            decided = find_micro_batch_size(config, run_dir, lock, quiet=options.quiet)
            # Other programs (torchrun, Slurm) restart what they have started themselves.
            restarts = 0 if options.node is not None else config.launch.restarts
            result = start(decided, run_dir, lock, replace(options, restarts=restarts))
    except TrainctlError as error:
        stopped = isinstance(error, Preempted | Interrupted)
        saved = config.checkpoint.has_saved(run_dir)
        # Resuming would meet a wrong config again, and refuses rows without a checkpoint.
        if not isinstance(error, ConfigError) and (saved or (stopped and not run_dir.has_rows())):
            error.add_note(f"resume with: {_resume_command(run_dir)}")
        raise
    if not options.quiet:
        print_result(result, run_dir, can_resume=config.checkpoint.has_saved(run_dir))
    return result


def _shown(path: Path) -> Path:
    """Return a path as users type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _resume_command(run_dir: RunDir) -> str:
    return shlex.join(["trainctl", "resume", str(_shown(run_dir.path))])


def print_result(result: Result, run_dir: RunDir, *, can_resume: bool) -> None:
    # The last line is the resume command: users and scripts find it with `tail -1`.
    for key, origin in result.without_effect.items():
        warning = f"trainctl: warning: {key} had no effect in this run ({origin})"
        print(warning, file=sys.stderr)  # noqa: T201
    if result.stopped is not None:
        print(f"stopped after step {result.step:,}: {result.stopped}")  # noqa: T201
    if result.scores:
        figures = filter(None, [_figures(result.scores), _figures(result.references)])
        print(f"held out: {'; '.join(figures)}")  # noqa: T201
    if result.sample is not None:
        print(f"sample:\n{result.sample}\n")  # noqa: T201 - what was learned is the result
    if run_dir.export.exists():
        print(f"exported to {_shown(run_dir.export)}")  # noqa: T201
    if can_resume:
        change = f"max_steps={2 * result.step}" if result.stopped is None else "observer=none"
        print(f"train longer with: {_resume_command(run_dir)} {change}")  # noqa: T201 - the last line
    sys.stdout.flush()


def _figures(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _write_down(
    config: RunConfig, provenance: Mapping[str, str], overrides: Sequence[str], run_dir: RunDir
) -> None:
    try:
        run_dir.write_config(config.to_json())
        write_atomically(run_dir.provenance, json.dumps(provenance, indent=1) + "\n")
        write_atomically(run_dir.overrides, "".join(f"{word}\n" for word in overrides))
        write_atomically(run_dir.env, json.dumps(facts(), indent=1) + "\n")
        command = shlex.join(["trainctl", "run", *overrides])
        # Relative paths of the config belong to this folder.
        folder = shlex.quote(str(Path.cwd()))
        write_atomically(run_dir.command, f"#!/bin/sh\ncd {folder} && {command}\n")
    except OSError as error:
        raise LaunchError(f"cannot write to {run_dir.path}: {error.strerror}") from error
