"""Read published checkpoints without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launcher.checkpoint import _manifest
from launcher.checkpoint._saved import SavedCheckpoint
from launcher.contracts import PublishedCheckpoint, StoredConfig
from launcher.run_dir import RunDir, step_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def published(run_dir: RunDir) -> list[PublishedCheckpoint]:
    found = []
    for path in run_dir.checkpoints.glob("step-*"):
        step, manifest = step_of(path), _manifest.peek(path)
        if step is not None and manifest is not None:
            size = sum(record.size for record in manifest.files.values())
            found.append(PublishedCheckpoint(step, path, size, manifest.world_size))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def stored_config(run_dir: RunDir) -> StoredConfig | None:
    for checkpoint in reversed(published(run_dir)):
        manifest = _manifest.peek(checkpoint.path)
        if manifest is None:
            continue
        # The config alone is verified: reading all tensors would take minutes for a large model.
        files = {_manifest.CONFIG: manifest.files[_manifest.CONFIG]}
        if not _manifest.check_files(checkpoint.path, files):
            path = checkpoint.path / _manifest.CONFIG
            return StoredConfig(path, manifest.run_id, path.read_text(encoding="utf-8"))
    return None


def load_tensors(path: Path, live: Mapping[str, Tensor]) -> None:
    saved = SavedCheckpoint(path)
    saved.verify()
    saved.fill(live)
