"""Folder of a run's checkpoints, and the renames that publish, replace and delete one."""

from __future__ import annotations

import logging
import re
import secrets
from pathlib import Path

from launcher.checkpoint._storage import Storage
from launcher.run_dir import RunDir, step_of

_log = logging.getLogger("trainctl.checkpoint")
# step-00001000             published: complete and verified before it got this name
# step-00001000.corrupt     found invalid, quarantined
# .tmp-step-…-<random>      being written
# .replaced-step-…-<random> the old checkpoint of a step that is being saved again
# .trash-step-…-<random>    being deleted
_LEFTOVER = re.compile(r"\.(tmp|trash|replaced)-(step-\d{8,})-[0-9a-f]+")


class CheckpointDir:
    """Checkpoints of one run, whose lock must be held: a running save's draft would be removed."""

    def __init__(self, run_dir: RunDir, storage: Storage) -> None:
        self._run_dir = run_dir
        self._storage = storage
        self.folder = run_dir.checkpoints

    def open(self) -> None:
        """Create the folder if it is missing, and clean up after a killed process."""
        if self.folder.is_dir():
            self._tidy()
            return
        self._storage.mkdir(self.folder)
        self._storage.fsync_folder(self._run_dir.path)

    def _tidy(self) -> None:
        for path in sorted(self.folder.iterdir()):
            match = _LEFTOVER.fullmatch(path.name)
            if match is None:
                continue
            kind, step = match.groups()
            if kind == "replaced" and not (self.folder / step).exists():
                _log.warning(
                    "%s: left by a killed save; restored as %s",
                    path,
                    step,
                )
                self._storage.rename(path, self.folder / step)
                self._storage.fsync_folder(self.folder)
            else:
                _log.warning("%s: left by a killed save; removed", path)
                self._remove(path)

    def steps(self) -> list[int]:
        """Return the steps of published checkpoints, newest first."""
        found = (step_of(path) for path in self.folder.iterdir())
        return sorted((step for step in found if step is not None), reverse=True)

    def path(self, step: int) -> Path:
        """Return the path of a step's checkpoint, which may not exist."""
        return self._run_dir.checkpoint(step)

    def quarantined(self) -> list[Path]:
        """Return the checkpoints that were found invalid."""
        return sorted(self.folder.glob("step-*.corrupt*"))

    def draft_path(self, step: int) -> Path:
        """Return a new path for a checkpoint to write."""
        return self._unpublished("tmp", step)

    def publish(self, draft: Path, step: int) -> None:
        """Rename a finished draft to its published name and sync it; roll back on an OSError."""
        # rename cannot replace a folder that is not empty: the old checkpoint of the step is
        # renamed to `.replaced-…` first. If the process dies between the renames, the next start
        # renames it back, so that at every moment one of the two is found.
        target = self.path(step)
        replaced = self._unpublished("replaced", step) if target.exists() else None
        if replaced is not None:
            self._storage.rename(target, replaced)
        try:
            self._storage.rename(draft, target)
            self._storage.fsync_folder(self.folder)
        except OSError:
            self._roll_back(draft, target, replaced)
            raise
        if replaced is not None:
            self._remove(replaced)

    def _roll_back(self, draft: Path, target: Path, replaced: Path | None) -> None:
        # Not another fsync: Linux reports a write error once and drops the pages, so that a second
        # fsync succeeds although the data is lost.
        try:
            if not draft.exists():
                self._storage.rename(target, draft)
            if replaced is not None:
                self._storage.rename(replaced, target)
        except OSError as error:
            _log.warning("%s: could not be rolled back: %s", target, error)

    def confirm(self) -> None:
        """Sync the names of published checkpoints, so that they survive a power cut."""
        self._storage.fsync_folder(self.folder)

    def discard(self, step: int) -> None:
        """Delete a checkpoint."""
        # Renamed first: deleting takes many system calls, and a kill between them would leave a
        # part of a checkpoint under its published name.
        trash = self._unpublished("trash", step)
        try:
            self._storage.rename(self.path(step), trash)
            self._storage.fsync_folder(self.folder)
        except OSError as error:
            _log.warning("%s: could not be deleted: %s", self.path(step), error)
            return
        self._remove(trash)

    def drop(self, draft: Path) -> None:
        """Remove a draft that will not be published."""
        if draft.exists():
            self._remove(draft)

    def quarantine(self, step: int, reason: str) -> None:
        """Rename an invalid checkpoint to `….corrupt`, with a warning."""
        path = self.path(step)
        target = path.with_name(f"{path.name}.corrupt")
        # Quarantined, not deleted: a person may recover most of the tensors.
        if target.exists():
            target = target.with_name(f"{target.name}-{secrets.token_hex(3)}")
        try:
            self._storage.rename(path, target)
            self._storage.fsync_folder(self.folder)
        except OSError as error:
            _log.warning(
                "%s is invalid and is not used: %s (not quarantined: %s)", path, reason, error
            )
        else:
            _log.warning(
                "%s is invalid and is not used: %s; quarantined as %s", path, reason, target.name
            )

    def _remove(self, path: Path) -> None:
        try:
            self._storage.remove(path)
        except OSError as error:
            _log.warning("%s: could not be removed: %s; the next start tries again", path, error)

    def _unpublished(self, kind: str, step: int) -> Path:
        return self.folder / f".{kind}-{self.path(step).name}-{secrets.token_hex(4)}"
