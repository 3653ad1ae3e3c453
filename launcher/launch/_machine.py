"""RUN_DIR/env.json: machine, code, packages and times of a run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from launcher.run_dir import RunDir, write_atomically

_GIT_TIMEOUT_S = 20
_MAX_DIFF_BYTES = 10 << 20
_NAMED = 50


def facts() -> dict[str, Any]:
    return {
        "folder": str(Path.cwd()),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "gpus": _gpus(),
    }


@contextlib.contextmanager
def launch_recorded(run_dir: RunDir) -> Iterator[None]:
    # In a thread while the ranks run: git takes seconds in a large repository, and so can reading
    # the metadata of all packages on a network file system.
    started, clock = _now(), time.monotonic()
    launch: dict[str, Any] = {"started": started}
    found: dict[str, Any] = {}

    def collect() -> None:
        found.update(packages=_packages(), git=_git(run_dir))
        _update(run_dir, found, launch)

    thread = threading.Thread(target=collect, name="env.json", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(_GIT_TIMEOUT_S)
        launch |= {"ended": _now(), "duration_s": round(time.monotonic() - clock, 3)}
        _update(run_dir, dict(found), launch)


def _update(run_dir: RunDir, found: dict[str, Any], launch: dict[str, Any]) -> None:
    # env.json is for information only: a failure to write it must not end a run.
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        values = json.loads(run_dir.env.read_text(encoding="utf-8"))
        launches = [
            each for each in values.get("launches", ()) if each["started"] != launch["started"]
        ]
        # The code of the first launch is that of the run; each later launch records its own.
        if launches:
            launch = {**launch, **{k: v for k, v in found.items() if values.get(k) != v}}
            found = {}
        values |= {**found, "launches": [*launches, launch]}
        write_atomically(run_dir.env, json.dumps(values, indent=1) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _packages() -> dict[str, str]:
    found = {each.metadata["Name"]: each.version for each in distributions()}
    return dict(sorted((name, number) for name, number in found.items() if name))


def _cpu() -> str:
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    # From the driver's files, because importing torch takes seconds.
    models = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError, ValueError):
            lines = path.read_text(encoding="utf-8").splitlines()
            models += [x.partition(":")[2].strip() for x in lines if x.startswith("Model")]
    return models


def _git(run_dir: RunDir) -> dict[str, Any] | None:
    """Return commit and changes of the current repository; write uncommitted.diff."""
    root = _run_git("rev-parse", "--show-toplevel")
    if root is None:
        return None
    commit = _run_git("rev-parse", "--verify", "HEAD")
    status = _run_git("status", "--porcelain", "--untracked-files=normal") or b""
    lines = [os.fsdecode(line) for line in status.splitlines()]
    changed = [line[3:] for line in lines if not line.startswith("??")]
    diff = _run_git("diff", "HEAD") if changed else None
    if diff:
        with contextlib.suppress(OSError):
            # Bounded: a tracked data file that changed must not fill the disk.
            (run_dir.path / "uncommitted.diff").write_bytes(diff[:_MAX_DIFF_BYTES])
    return {
        "repository": os.fsdecode(root).strip(),
        "commit": None if commit is None else commit.decode().strip(),
        "dirty": bool(changed),
        "changed": changed[:_NAMED],
        "untracked": [line[3:] for line in lines if line.startswith("??")][:_NAMED],
    }


def _run_git(*words: str) -> bytes | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", *words],  # noqa: S607 - the user's own git
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_TIMEOUT_S,
            # `git status` writes the index otherwise, and its lock breaks a git that the user runs.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout
    return None
