"""Config of an existing run: verify it, change it, and undo a change after a crash.

run.json has the checksum of config.json. From a resume with changed settings until the first
checkpoint with them it also has the old files, which the next resume restores after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from launcher.checkpoint import stored_config
from launcher.config.problems import leaves
from launcher.contracts import StoredConfig
from launcher.errors import ConfigError, LaunchError, Problem
from launcher.run_dir import RunDir, checksum, write_atomically

_PENDING = "pending"


def verified_config(run_dir: RunDir, overrides: Sequence[str]) -> str:
    """Return the text of config.json, or of the newest checkpoint's copy.

    Raises:
        ConfigError: config.json was edited, in more than the settings that `overrides` replace.
        LaunchError: It cannot be read.
    """
    # An edited config.json would train with settings that no rule of resuming has checked.
    try:
        data = run_dir.config.read_bytes()
    except OSError as error:
        raise LaunchError(f"cannot read {run_dir.config}: {error.strerror}") from error
    record, saved = run_dir.read_record(), stored_config(run_dir)
    if sha256(data).hexdigest() in _checksums(record):
        return data.decode()
    if saved is None:
        if not record:  # older releases wrote no run.json
            return data.decode(errors="replace")
        message = f"{run_dir.config} is not what this run wrote (run.json has its SHA-256)"
        raise ConfigError([Problem("", f"{message}; start a new run: sh {run_dir.command}")])
    problems = differences(data, saved.text, saved.path, run_dir.config)
    keys = [_key(word) for word in overrides]
    if left := [p for p in problems if not any(_is_in(p.key, key) for key in keys)]:
        raise ConfigError(left)
    return saved.text


def differences(data: bytes, saved: str, source: Path, target: Path) -> list[Problem]:
    """Compare config.json (`data`, `target`) with a checkpoint's copy, setting by setting."""
    cure = f"restore it: cp {source} {target}"
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        return [Problem("", f"{target} is damaged ({error}); {cure}")]
    if not isinstance(found, dict):
        return [Problem("", f"{target} must hold an object; {cure}")]
    before, after = _texts(json.loads(saved)), _texts(found)
    return [
        Problem(key, f"{_difference(key, before, after)} {cure}", str(target))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _difference(key: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    copy = "the newest checkpoint's copy"
    if key not in before:
        return f"is {after[key]} in config.json, but {copy} does not have it; remove it, or"
    if key not in after:
        return f"is missing in config.json, but {before[key]} in {copy};"
    values = f"is {after[key]} in config.json, but {before[key]} in {copy}"
    return f"{values}; to change it, resume with {key}=VALUE, or"


def adopt(run_dir: RunDir, text: str) -> None:
    """Write run.json for a run that has none, and config.json if it is not the verified text."""
    # The id of the newest checkpoint, not the directory's name, which may have been changed.
    record = run_dir.read_record()
    if not isinstance(record.get("id"), str):
        saved: StoredConfig | None = stored_config(run_dir)
        run_dir.write_config(text, id=saved.run_id if saved else run_dir.path.name)
    elif run_dir.config.read_bytes() != text.encode():
        run_dir.write_config(text)


def change(run_dir: RunDir, text: str, overrides: Sequence[str]) -> None:
    """Write a changed config, and in run.json what undoes the change."""
    files = (run_dir.config, run_dir.overrides, run_dir.provenance)
    before = {path.name: _text(path) for path in files if path.exists()}
    sums = _checksums(run_dir.read_record())[:1]
    pending = {"overrides": list(overrides), "files": before, "config_sha256": sums}
    # run.json first: a crash after any of these writes finds the old texts in it.
    run_dir.write_config(text, **{_PENDING: pending})
    words = "".join(f"{word}\n" for word in overrides)
    write_atomically(run_dir.overrides, before.get(run_dir.overrides.name, "") + words)
    origins = run_dir.read_provenance()
    for word in overrides:
        origins[_key(word)] = f"command line of resume: {word}"
    write_atomically(run_dir.provenance, json.dumps(origins, indent=1) + "\n")


def keep(run_dir: RunDir) -> None:
    record = run_dir.read_record()
    if record.pop(_PENDING, None) is not None:
        write_atomically(run_dir.record, json.dumps(record, indent=1) + "\n")


def undo(run_dir: RunDir) -> Sequence[str]:
    """Undo the last change, and return its overrides."""
    record = run_dir.read_record()
    pending = record.get(_PENDING)
    if not isinstance(pending, Mapping) or not isinstance(pending.get("files"), Mapping):
        return ()
    # run.json last: until then a crash is followed by the same undo again.
    for path in (run_dir.overrides, run_dir.provenance, run_dir.config):
        if path.name in pending["files"]:
            write_atomically(path, str(pending["files"][path.name]))
    left = {k: v for k, v in record.items() if k != _PENDING}
    # The old checksums, not those of the restored texts: a text that was damaged in run.json must
    # not be accepted.
    left["config_sha256"] = _checksums(pending)
    write_atomically(run_dir.record, json.dumps(left, indent=1) + "\n")
    return [str(word) for word in pending.get("overrides", ())]


def undo_killed(run_dir: RunDir) -> Sequence[str]:
    """Undo a change whose resume was killed before it saved; return its overrides."""
    # A checkpoint with the new settings exists: the change is part of the run.
    saved = stored_config(run_dir)
    if saved is not None and _checksums(run_dir.read_record())[:1] == [checksum(saved.text)]:
        keep(run_dir)
    return undo(run_dir)


def _checksums(record: Mapping[str, Any]) -> list[str]:
    sums = record.get("config_sha256")
    return [str(each) for each in sums] if isinstance(sums, list) else []


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in leaves(config)}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _is_in(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")
