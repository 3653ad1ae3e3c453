"""An old run: the settings that change, and its start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.config.resume_rules import apply
from launcher.errors import CheckpointError, ConfigError, LaunchError
from launcher.launch._begin import preflight, run_ranks
from launcher.launch._lock import locked
from launcher.launch._outcome import Result
from launcher.run_dir import RunDir, write_atomically


def resume(
    path: Path, overrides: Sequence[str], allow: Sequence[str], *, quiet: bool = False
) -> Result:
    """Resume a run; see `launcher.launch.resume`."""
    run_dir = RunDir(path)

    def say(text: str) -> None:
        if not quiet:
            print(text)  # noqa: T201 - a change of the run is shown

    with locked(run_dir) as lock:
        stored = run_dir.config.read_text(encoding="utf-8")
        config, changes = apply(stored, overrides, allow)
        preflight(config)
        for change in changes:
            say(f"{change.key}: {json.dumps(change.old)} -> {json.dumps(change.new)}")
        if not changes:
            return run_ranks(config, run_dir, lock, quiet=quiet)
        written = (run_dir.config, run_dir.overrides, run_dir.provenance)
        before = {path: path.read_text(encoding="utf-8") for path in written if path.exists()}
        saves = _saves(run_dir)
        write_atomically(run_dir.config, config.to_json())
        _append(run_dir, overrides)
        try:
            return run_ranks(config, run_dir, lock, quiet=quiet)
        except (ConfigError, CheckpointError, LaunchError):
            # What no checkpoint was saved under cannot be gone on with: the next resume must not
            # meet it.
            if _saves(run_dir) == saves:
                for file, text in before.items():
                    write_atomically(file, text)
                say("the settings are put back: the run cannot go on with these changes")
            raise


def _saves(run_dir: RunDir) -> set[str]:
    """Names of the checkpoints that there are."""
    return {path.name for path in run_dir.checkpoints.glob("step-*")}


def _append(run_dir: RunDir, overrides: Sequence[str]) -> None:
    """Keep what was typed: the later word wins, as on the command line."""
    before = run_dir.overrides.read_text(encoding="utf-8") if run_dir.overrides.exists() else ""
    write_atomically(run_dir.overrides, before + "".join(f"{word}\n" for word in overrides))
    origins = json.loads(run_dir.provenance.read_text(encoding="utf-8"))
    for word in overrides:
        origins[word.partition("=")[0].lstrip("+~")] = f"command line of resume: {word}"
    write_atomically(run_dir.provenance, json.dumps(origins, indent=1) + "\n")
