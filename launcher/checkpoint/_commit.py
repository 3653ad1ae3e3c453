"""From tensors in memory to a verified, published checkpoint.

The order is what makes it safe. Every file is written and synced under a name that no reader looks
at; then the manifest; then the folders; then all of it is read back and compared; then one rename
publishes it; then the rename is synced. Only now is the checkpoint acknowledged, and only after
that may an older one go.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import launcher
from launcher.checkpoint import _manifest
from launcher.checkpoint._draft import Draft
from launcher.checkpoint._manifest import Manifest
from launcher.checkpoint._shelf import Shelf
from launcher.checkpoint._storage import Storage
from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What is to be saved; nothing in it changes any more.

    Attributes:
        run_id: The run.
        step: Optimizer steps done.
        parent_step: The checkpoint before it.
        world_size: Ranks of the run.
        data_fingerprint: Hash of the training examples.
        config: Text of config.json.
        train_state: Text of train_state.json.
        tensors: Everything else, by name.
    """

    run_id: str
    step: int
    parent_step: int | None
    world_size: int
    data_fingerprint: str
    config: str
    train_state: str
    tensors: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of the tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def texts(self) -> dict[str, bytes]:
        """The files that are not tensors."""
        return {
            _manifest.CONFIG: self.config.encode(),
            _manifest.TRAIN_STATE: self.train_state.encode(),
        }


def commit(pending: Pending, shelf: Shelf, storage: Storage) -> None:
    """Write, verify and publish.

    Raises:
        CheckpointError: It is not published and its files are removed; older ones are untouched.
    """
    path = shelf.draft_path(pending.step)
    try:
        if _stands(pending, shelf):
            shelf.confirm()
            return
        _write(pending, Draft(storage, path))
        _read_back(path)
        shelf.publish(path, pending.step)
    except OSError as error:
        shelf.drop(path)
        raise _failure(pending, shelf, error, _free(storage, shelf.folder)) from error
    except BaseException:
        shelf.drop(path)
        raise


def _read_back(path: Path) -> None:
    if faults := _manifest.verify(path):
        raise CheckpointError(
            f"{path} does not read back as it was written: {'; '.join(faults)}; "
            "older checkpoints are untouched; check this machine's disk and memory"
        )


def _stands(pending: Pending, shelf: Shelf) -> bool:
    """Whether this very state is published already: a run resumed from it saves it again.

    What stands under the step's name but is unfit, or is another run's, is set aside first.
    """
    step = pending.step
    if not shelf.path(step).exists():
        return False
    verdict = _manifest.examine(shelf.path(step))
    if fault := unfit(verdict, pending.run_id, step):
        shelf.set_aside(step, fault)
        return False
    return verdict.manifest is not None and all(
        _manifest.record(data) == verdict.manifest.files[name]
        for name, data in pending.texts().items()
    )


def unfit(verdict: _manifest.Verdict, run_id: str, step: int) -> str | None:
    """Why a checkpoint is not this run's at this step, or None."""
    if verdict.faults or verdict.manifest is None:
        return "; ".join(verdict.faults)
    if verdict.manifest.step != step:
        return f"{_manifest.NAME}: expected step {step}, found step {verdict.manifest.step}"
    return foreign(verdict.manifest, run_id)


def foreign(manifest: Manifest, run_id: str) -> str | None:
    """Why a checkpoint that is whole is not this run's, or None."""
    if manifest.run_id == run_id:
        return None
    return (
        f"{_manifest.NAME}: expected run {run_id}, found run {manifest.run_id}; "
        "a run directory keeps its name for life"
    )


def _write(pending: Pending, draft: Draft) -> None:
    from launcher.checkpoint import _dcp

    _dcp.write(pending.tensors, draft)
    for name, data in pending.texts().items():
        draft.write(name, data)
    manifest = Manifest(
        format=_manifest.FORMAT,
        run_id=pending.run_id,
        step=pending.step,
        parent_step=pending.parent_step,
        world_size=pending.world_size,
        data_fingerprint=pending.data_fingerprint,
        config_sha256=sha256(pending.config.encode()).hexdigest(),
        versions=_versions(),
        files=draft.files,
    )
    draft.write(_manifest.NAME, _manifest.encode(manifest))
    draft.seal()


def _versions() -> dict[str, str]:
    import torch

    return {
        "trainctl": launcher.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _free(storage: Storage, folder: Path) -> str:
    try:
        return f"{storage.free_bytes(folder):,}"
    except OSError:
        return "an unknown number of"


def _failure(pending: Pending, shelf: Shelf, error: OSError, free: str) -> CheckpointError:
    return CheckpointError(
        f"cannot save step {pending.step} in {shelf.folder}: {error.strerror or error} "
        f"({error.filename or shelf.folder}); {free} bytes are free, {pending.num_bytes:,} are "
        "needed; older checkpoints are untouched. Make room or mend the disk, then `trainctl "
        "resume` (checkpoint.keep says how many checkpoints stay)"
    )
