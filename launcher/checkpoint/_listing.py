"""Describe all checkpoints of a run, also damaged ones, without reading tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launcher.checkpoint import _manifest
from launcher.checkpoint._manifest import Manifest
from launcher.run_dir import RunDir, step_of

Status = Literal["complete", "damaged", "quarantined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A checkpoint of a run.

    Attributes:
        path: Its folder.
        step: Optimizer steps done; None if nothing says so.
        time: When it was published, in seconds since 1970.
        num_bytes: Size of its files, in bytes.
        ranks: Ranks that wrote it; None if the manifest is damaged.
        engine: Its `parallelism.kind`; None if its config is damaged.
        status: `complete` if every file has its size (`verify` reads the bytes), `damaged`, or
            `quarantined` by a resumed run.
        faults: A line per damaged file.
        last: True for the newest complete one.
        best: True for the one of the evaluation with the best objective.
    """

    path: Path
    step: int | None
    time: float
    num_bytes: int
    ranks: int | None
    engine: str | None
    status: Status
    faults: tuple[str, ...]
    last: bool = False
    best: bool = False


def listed(run_dir: RunDir) -> list[Listed]:
    """Return a run's checkpoints, ordered by step."""
    paths = [path for path in run_dir.checkpoints.glob("step-*") if path.is_dir()]
    found = [_describe(path) for path in sorted(paths)]
    steps = [each.step for each in found if each.status == "complete"]
    last, best = max(filter(None, steps), default=None), _best_step(run_dir)
    return [
        replace(each, last=each.step == last, best=each.step is not None and each.step == best)
        if each.status == "complete"
        else each
        for each in found
    ]


def _describe(path: Path) -> Listed:
    manifest, fault = _manifest.open_checkpoint(path)
    step = step_of(path)
    faults = [fault] if manifest is None else _wrong_sizes(path, manifest)
    return Listed(
        path=path,
        step=manifest.step if manifest is not None and step is None else step,
        time=path.stat().st_mtime,
        num_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        ranks=None if manifest is None else manifest.world_size,
        engine=None if manifest is None else _engine(path, manifest),
        status="quarantined" if step is None else "damaged" if faults else "complete",
        faults=tuple(faults),
    )


def _wrong_sizes(path: Path, manifest: Manifest) -> list[str]:
    """Return a line per file whose size is wrong: reading all bytes of a large model takes long."""
    found = []
    for name, record in manifest.files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != record.size:
            what = "is missing" if size is None else f"has {size:,} bytes"
            found.append(f"{name}: expected {record.size:,} bytes, but it {what}")
    return found


def _engine(path: Path, manifest: Manifest) -> str | None:
    config = _read(path, manifest, _manifest.CONFIG)
    group = config.get("parallelism")
    kind = group.get("kind") if isinstance(group, dict) else None
    return kind if isinstance(kind, str) else None


def _best_step(run_dir: RunDir) -> int | None:
    """Return the step of the evaluation with the best objective."""
    # Not from a checkpoint's state: it may have been saved before the evaluation of its step.
    config = json.loads(run_dir.config.read_bytes())
    objective, sign = config["objective"], -1 if config["objective_mode"] == "max" else 1
    scores = {}
    if run_dir.has_rows():
        for line in run_dir.metrics.read_text("utf-8").splitlines():
            row = json.loads(line)
            if isinstance(score := row.get(objective), int | float):
                scores[row["step"]] = sign * score
    return min(scores, key=lambda step: scores[step], default=None)


def _read(path: Path, manifest: Manifest, name: str) -> Mapping[str, Any]:
    if _manifest.check_files(path, {name: manifest.files[name]}):
        return {}
    values: dict[str, Any] = json.loads((path / name).read_bytes())
    return values
