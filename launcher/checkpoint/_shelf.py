"""The folder of a run's checkpoints, and the renames by which one appears, is replaced and goes.

    step-00001000             published: whole and verified when it got this name
    step-00001000.corrupt     found unfit and kept aside
    .tmp-step-…-<random>      being written
    .replaced-step-…-<random> a step that is being saved again, until the new one has its name
    .trash-step-…-<random>    being deleted

A step that is saved again goes out of its name before the new one comes in, since a folder cannot
be renamed over a full one. Between the two renames the old one stands whole as `.replaced-…`;
`tidy` gives it its name back. So at every instant one of the two is there and is found by the next
process.
"""

from __future__ import annotations

import logging
import re
import secrets
from pathlib import Path

from launcher.checkpoint._storage import Storage
from launcher.run_dir import RunDir, step_of

_log = logging.getLogger("trainctl.checkpoint")
_LEFTOVER = re.compile(r"\.(tmp|trash|replaced)-(step-\d{8,})-[0-9a-f]+")


class Shelf:
    """One run's checkpoints.

    Args:
        run_dir: The run; its lock must be held, because leftovers of a live run would be taken for
            dead ones.
        storage: The disk.
    """

    def __init__(self, run_dir: RunDir, storage: Storage) -> None:
        self._run_dir = run_dir
        self._storage = storage
        self.folder = run_dir.checkpoints

    def open(self) -> None:
        """Make the folder if it is missing, and bring order into what a killed process left."""
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
                _log.warning("%s: a killed save had it out of its name; put back as %s", path, step)
                self._storage.rename(path, self.folder / step)
                self._storage.fsync_folder(self.folder)
            else:
                _log.warning("%s: left by a killed save; removed", path)
                self._remove(path)

    def steps(self) -> list[int]:
        """Steps that have a published checkpoint, the newest first; by name, never by a clock."""
        found = (step_of(path) for path in self.folder.iterdir())
        return sorted((step for step in found if step is not None), reverse=True)

    def path(self, step: int) -> Path:
        """The published checkpoint of a step; it may not exist."""
        return self._run_dir.checkpoint(step)

    def set_asides(self) -> list[Path]:
        """Checkpoints that were found unfit, now or earlier."""
        return sorted(self.folder.glob("step-*.corrupt*"))

    def draft_path(self, step: int) -> Path:
        """A new name for a checkpoint that is going to be written."""
        return self._aside("tmp", step)

    def publish(self, draft: Path, step: int) -> None:
        """Give a finished draft its name; when this returns, it survives a power cut.

        Raises:
            OSError: It could not be done; what was there before is there again.
        """
        target = self.path(step)
        replaced = self._aside("replaced", step) if target.exists() else None
        if replaced is not None:
            self._storage.rename(target, replaced)
        try:
            self._storage.rename(draft, target)
            self._storage.fsync_folder(self.folder)
        except OSError:
            self._take_back(draft, target, replaced)
            raise
        if replaced is not None:
            self._remove(replaced)

    def _take_back(self, draft: Path, target: Path, replaced: Path | None) -> None:
        """Undo what may not be on the disk: a failed fsync is never mended by another."""
        try:
            if not draft.exists():
                self._storage.rename(target, draft)
            if replaced is not None:
                self._storage.rename(replaced, target)
        except OSError as error:
            _log.warning("%s: could not be taken back: %s", target, error)

    def confirm(self) -> None:
        """Make sure that what stands on the shelf survives a power cut."""
        self._storage.fsync_folder(self.folder)

    def discard(self, step: int) -> None:
        """Delete a checkpoint: out of its name first, so that no reader sees it half gone."""
        trash = self._aside("trash", step)
        try:
            self._storage.rename(self.path(step), trash)
            self._storage.fsync_folder(self.folder)
        except OSError as error:
            _log.warning("%s: could not be deleted: %s", self.path(step), error)
            return
        self._remove(trash)

    def drop(self, draft: Path) -> None:
        """Remove a draft that will not be published, as far as the disk lets us."""
        if draft.exists():
            self._remove(draft)

    def set_aside(self, step: int, reason: str) -> None:
        """Take an unfit checkpoint out of its name and keep it, saying so."""
        path = self.path(step)
        aside = path.with_name(f"{path.name}.corrupt")
        if aside.exists():
            aside = aside.with_name(f"{aside.name}-{secrets.token_hex(3)}")
        try:
            self._storage.rename(path, aside)
            self._storage.fsync_folder(self.folder)
        except OSError as error:
            _log.warning("%s is unfit and is not used: %s (not set aside: %s)", path, reason, error)
        else:
            _log.warning(
                "%s is unfit and is not used: %s; set aside as %s", path, reason, aside.name
            )

    def _remove(self, path: Path) -> None:
        try:
            self._storage.remove(path)
        except OSError as error:
            _log.warning("%s: could not be removed: %s; the next start tries again", path, error)

    def _aside(self, kind: str, step: int) -> Path:
        return self.folder / f".{kind}-{self.path(step).name}-{secrets.token_hex(4)}"
