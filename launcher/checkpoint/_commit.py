"""Write, verify and publish a checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import launcher
from launcher.checkpoint import _manifest
from launcher.checkpoint._checkpoint_dir import CheckpointDir
from launcher.checkpoint._draft import Draft
from launcher.checkpoint._manifest import FileRecord, Manifest
from launcher.checkpoint._ranks import Ranks
from launcher.checkpoint._state import State
from launcher.checkpoint._storage import Storage
from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from launcher.checkpoint._dcp import Plan


# The order makes a save safe against a kill or a power cut at any point: write and sync every file
# under a temporary name, then the manifest, then the folders; read everything back and compare;
# rename; sync the rename. Only then is the checkpoint reported as saved, and only then may an older
# one be deleted.
#
# Every rank writes, syncs and reads back its own files; rank 0 creates the folders, writes the
# manifest for the files of all ranks, renames and deletes. Each phase ends with a round of all
# ranks: nothing is published before every rank has reported, and nothing is removed while a rank
# writes to it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Content of one checkpoint.

    Attributes:
        parent_step: The checkpoint before it.
        state: Tensors by name; those that this rank does not write may be missing.
        plan: The boxes that this rank writes; None if not planned yet.
        num_bytes: Size of all full tensors, in bytes.
    """

    run_id: str
    step: int
    parent_step: int | None
    world_size: int
    data_fingerprint: str
    config: str
    train_state: str
    state: State
    plan: Plan | None
    num_bytes: int

    def texts(self) -> dict[str, bytes]:
        """Return the files that have no tensors."""
        return {
            _manifest.CONFIG: self.config.encode(),
            _manifest.TRAIN_STATE: self.train_state.encode(),
        }


def commit(pending: Pending, directory: CheckpointDir, storage: Storage, ranks: Ranks) -> None:
    """Write, verify and publish, together with the other ranks.

    Raises:
        CheckpointError: The checkpoint is not published and its files are removed; older ones are
            untouched.
    """
    _Save(pending, directory, storage, ranks).commit()


class _Save:
    """One save, of one rank."""

    def __init__(
        self, pending: Pending, directory: CheckpointDir, storage: Storage, ranks: Ranks
    ) -> None:
        self._pending = pending
        self._directory = directory
        self._storage = storage
        self._ranks = ranks
        self._path = directory.draft_path(pending.step)
        self._draft: Draft | None = None

    def commit(self) -> None:
        try:
            name = self._ranks.first(self._begin)
            if name is not None:
                self._path = self._directory.folder / name
                self._write_and_publish()
        except BaseException:
            # Also on KeyboardInterrupt: a draft of a large model must not stay on a full disk.
            if self._ranks.is_first:
                self._directory.drop(self._path)
            raise

    def _begin(self) -> str | None:
        """Create the folders; return the draft's name, or None if this state is published."""
        from launcher.checkpoint import _dcp

        with self._explained():
            if _already_published(self._pending, self._directory):
                self._directory.confirm()
                return None
            self._draft = Draft(self._storage, self._path)
            self._draft.make(_dcp.STATE)
        return self._path.name

    def _write_and_publish(self) -> None:
        from launcher.checkpoint import _dcp

        # Rank 0 has created the folders of its draft.
        self._draft = draft = self._draft or Draft(self._storage, self._path)
        plan = self._pending.plan or _dcp.make_plan(self._pending.state, self._ranks)
        others: set[str] = set()

        def write() -> tuple[dict[str, FileRecord], list[Any]]:
            with self._explained():
                results = _dcp.write(self._pending.state, plan, draft)
            return draft.files, results

        def complete(reports: list[tuple[dict[str, FileRecord], list[Any]]]) -> None:
            for files, _ in reports[1:]:
                draft.files |= files
                others.update(files)
            with self._explained():
                _dcp.finish(plan, [results for _, results in reports], draft)
                _seal(self._pending, draft)

        def publish(_: object) -> None:
            with self._explained():
                self._directory.publish(self._path, self._pending.step)

        # Two rounds: rank 0 needs the checksums of all ranks for the manifest, and every rank's
        # verification before it renames.
        self._ranks.share(write, complete)
        self._ranks.share(lambda: self._read_back(draft, others), publish)

    def _read_back(self, draft: Draft, others: set[str]) -> None:
        """Compare this rank's files with their checksums; rank 0 also the manifest."""
        # Finds memory and disk errors while the older checkpoint still exists.
        files = {name: file for name, file in draft.files.items() if name not in others}
        fault = ""
        if self._ranks.is_first:
            _, fault = _manifest.open_checkpoint(self._path)
            files.pop(_manifest.NAME, None)
        if faults := [fault] if fault else _manifest.check_files(self._path, files):
            raise CheckpointError(
                f"{self._path} does not read back as it was written: {'; '.join(faults)}; "
                "older checkpoints are untouched; check this machine's disk and memory"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Convert an OSError to a CheckpointError."""
        try:
            yield
        except OSError as error:
            raise _failure(self._pending, self._directory, error, self._free()) from error

    def _free(self) -> str:
        # The draft is removed after the error: its bytes will be free when the user looks.
        written = self._draft.num_bytes if self._draft is not None else 0
        try:
            return f"{self._storage.free_bytes(self._directory.folder) + written:,}"
        except OSError:
            return "an unknown number of"


def _already_published(pending: Pending, directory: CheckpointDir) -> bool:
    """Return True if this state is already published; quarantine another one at its step."""
    # A run that is resumed at its last step saves the step a second time.
    step = pending.step
    if not directory.path(step).exists():
        return False
    verdict = _manifest.examine(directory.path(step))
    if fault := invalid_reason(verdict, pending.run_id, step):
        directory.quarantine(step, fault)
        return False
    return verdict.manifest is not None and all(
        _manifest.record(data) == verdict.manifest.files[name]
        for name, data in pending.texts().items()
    )


def invalid_reason(verdict: _manifest.Verdict, run_id: str, step: int) -> str | None:
    """Return why a checkpoint is not this run's valid one of a step, or None."""
    if verdict.faults or verdict.manifest is None:
        return "; ".join(verdict.faults)
    if verdict.manifest.step != step:
        return f"{_manifest.NAME}: expected step {step}, found step {verdict.manifest.step}"
    return foreign(verdict.manifest, run_id)


def foreign(manifest: Manifest, run_id: str) -> str | None:
    """Return why a valid checkpoint is not this run's, or None."""
    if manifest.run_id == run_id:
        return None
    return (
        f"{_manifest.NAME}: expected run {run_id}, found run {manifest.run_id}; "
        "it was copied from that run, or run.json was"
    )


def _seal(pending: Pending, draft: Draft) -> None:
    """Write the texts and the manifest, then sync the folders."""
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
    # The manifest last: where it is, all files that it names have been written and synced.
    draft.write(_manifest.NAME, _manifest.encode(manifest))
    draft.seal()


def _versions() -> dict[str, str]:
    import torch

    return {
        "trainctl": launcher.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _failure(
    pending: Pending, directory: CheckpointDir, error: OSError, free: str
) -> CheckpointError:
    return CheckpointError(
        f"cannot save step {pending.step} in {directory.folder}: {error.strerror or error} "
        f"({error.filename or directory.folder}); {free} bytes are free, {pending.num_bytes:,} are "
        "needed; older checkpoints are untouched. Free space or repair the disk, then `trainctl "
        "resume` (checkpoint.keep says how many checkpoints stay)"
    )
