"""The checkpoints of one run in its directory."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from launcher.checkpoint import _manifest
from launcher.checkpoint._commit import Pending, commit, foreign, unfit
from launcher.checkpoint._manifest import Manifest
from launcher.checkpoint._shelf import Shelf
from launcher.checkpoint._staging import Staging
from launcher.checkpoint._storage import Storage
from launcher.contracts import EngineState, Snapshot, World, param_of
from launcher.errors import CheckpointError
from launcher.run_dir import RunDir

_log = logging.getLogger("trainctl.checkpoint")
_NAMED = 5


class DirectoryStore:
    """Folders under RUN_DIR/checkpoints; see the package for what is in one.

    Args:
        run_dir: The run, whose lock the caller holds.
        world: This process's place among the ranks.
        keep: How many of the newest verified checkpoints stay.
        asynchronous: Write in the background.
        timeout_s: Longest wait for a save that is being written, in seconds.
        storage: The disk; a test gives one that breaks.

    Raises:
        CheckpointError: The folder cannot be made or tidied.
    """

    def __init__(
        self,
        run_dir: RunDir,
        world: World,
        *,
        keep: int,
        asynchronous: bool,
        timeout_s: float,
        storage: Storage | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._world = world
        self._keep = keep
        self._asynchronous = asynchronous
        self._timeout_s = timeout_s
        self._storage = storage or Storage()
        self._shelf = Shelf(run_dir, self._storage)
        self._staging = Staging()
        self._writing: _Background | None = None
        self._parent_step: int | None = None
        self._verified: set[int] = set()
        try:
            self._shelf.open()
        except OSError as error:
            raise CheckpointError(
                f"{self._shelf.folder} cannot be used for checkpoints: {error.strerror or error} "
                f"({error.filename}); choose a writable folder with run_root=DIR"
            ) from error

    def save(self, snapshot: Snapshot) -> None:
        """Start saving; in the foreground, save.

        Raises:
            CheckpointError: This save, or the one before it that was still being written, failed.
        """
        self.wait()
        tensors = self._tensors(snapshot)
        pending = Pending(
            run_id=self._run_dir.id,
            step=snapshot.step,
            parent_step=self._parent_step,
            world_size=self._world.size,
            data_fingerprint=snapshot.data_fingerprint,
            config=snapshot.config,
            train_state=json.dumps(snapshot.train_state, indent=2) + "\n",
            tensors=self._staging.copy(tensors) if self._asynchronous else tensors,
        )
        if self._asynchronous:
            self._writing = _Background(
                lambda: self._commit(pending), f"checkpoint-{snapshot.step}"
            )
        else:
            self._commit(pending)

    def poll(self) -> None:
        """Raise what the save in the background failed with; once."""
        if self._writing is not None and self._writing.done:
            self._end(self._writing)

    def wait(self) -> None:
        """Wait until the last save is published.

        Raises:
            CheckpointError: It failed, or is not done after `timeout_s`.
        """
        if self._writing is None:
            return
        if not self._writing.wait(self._timeout_s):
            raise CheckpointError(
                f"{self._shelf.folder}: {self._writing.name} is still being written after "
                f"{time.monotonic() - self._writing.start:.0f} s; the disk is stuck or too slow "
                "(checkpoint.timeout_s, checkpoint.every_steps)"
            )
        self._end(self._writing)

    def load(self, engine: EngineState) -> Snapshot | None:
        """The newest checkpoint that verifies, or None when the run has none.

        An unfit one is set aside as `step-….corrupt`, with a warning that names the file, and the
        next is tried. One that is whole but not this model's, or that would have to be unpickled,
        is an error: there is nothing to fall back from.

        Args:
            engine: Live state that tells names, shapes and dtypes; it is not written to.

        Raises:
            CheckpointError: There are checkpoints but none is fit, or the newest fit one does not
                match.
        """
        self.wait()
        refused: list[str] = []
        for step in self._shelf.steps():
            manifest, reason = self._examine(step)
            if manifest is not None:
                snapshot = self._read(self._shelf.path(step), manifest, engine)
                self._parent_step = step
                return snapshot
            refused.append(f"{self._shelf.path(step).name}: {reason}")
        set_asides = [path.name for path in self._shelf.set_asides()]
        if not refused and not set_asides:
            return None
        raise CheckpointError(
            "\n  ".join(
                [
                    f"{self._shelf.folder} holds no checkpoint that is fit to go on from:",
                    *refused,
                    *(f"{name} is kept aside, it was found unfit" for name in set_asides),
                    "put back a good copy of one of them, or start a new run",
                ]
            )
        )

    def close(self) -> None:
        """Wait for the writer and let go of the memory for copies."""
        self.wait()
        self._staging = Staging()

    def _tensors(self, snapshot: Snapshot) -> dict[str, Tensor]:
        prefix = self._rng_prefix
        rng = {f"{prefix}{name}": tensor for name, tensor in snapshot.rng.items()}
        return {name: tensor.detach() for name, tensor in {**snapshot.engine, **rng}.items()}

    @property
    def _rng_prefix(self) -> str:
        return f"rng.rank{self._world.rank}."

    def _end(self, writing: _Background) -> None:
        self._writing = None
        if writing.error is not None:
            raise writing.error

    def _commit(self, pending: Pending) -> None:
        start = time.monotonic()
        commit(pending, self._shelf, self._storage)
        self._parent_step = pending.step
        self._verified.add(pending.step)
        _log.info("saved step %d in %.1f s", pending.step, time.monotonic() - start)
        try:
            self._retain(pending.step)
        except OSError as error:
            _log.warning("older checkpoints could not be looked through: %s", error)

    def _retain(self, newest: int) -> None:
        """Delete what is beyond the `keep` newest verified checkpoints, `newest` being one."""
        kept = 1
        for step in self._shelf.steps():
            if step == newest:
                continue
            if kept < self._keep:
                kept += step in self._verified or self._examine(step)[0] is not None
            elif self._is_ours(step):
                self._verified.discard(step)
                self._shelf.discard(step)

    def _is_ours(self, step: int) -> bool:
        """Whether this run wrote a checkpoint; what cannot say so is not ours to delete."""
        manifest = _manifest.peek(self._shelf.path(step))
        return manifest is not None and manifest.run_id == self._run_dir.id

    def _examine(self, step: int) -> tuple[Manifest | None, str]:
        """The manifest of a fit checkpoint, or None and the reason; a damaged one is set aside."""
        path = self._shelf.path(step)
        verdict = _manifest.examine(path)
        reason = unfit(verdict, self._run_dir.id, step)
        if reason is None:
            self._verified.add(step)
            if verdict.strays:
                _log.warning(
                    "%s: not written by us and not read: %s", path, ", ".join(verdict.strays)
                )
            return verdict.manifest, ""
        self._verified.discard(step)
        if (
            verdict.manifest is not None
            and not verdict.faults
            and foreign(verdict.manifest, self._run_dir.id)
        ):
            # Whole, but not ours: a renamed run directory must not lose its checkpoints over it.
            _log.warning("%s is not used: %s", path, reason)
        else:
            self._shelf.set_aside(step, reason)
        return None, reason

    def _read(self, path: Path, manifest: Manifest, engine: EngineState) -> Snapshot:
        from launcher.checkpoint import _dcp

        try:
            sizes = {name: record.size for name, record in manifest.files.items()}
            index = _dcp.Index(path, sizes)
            _check_same_model(path, index.describe(), engine)
            tensors = index.read()
            config = (path / _manifest.CONFIG).read_text("utf-8")
            train_state = _read_object(path / _manifest.TRAIN_STATE)
        except OSError as error:
            raise CheckpointError(f"{path} verified but could then not be read: {error}") from error
        prefix = self._rng_prefix
        return Snapshot(
            step=manifest.step,
            engine={name: t for name, t in tensors.items() if not name.startswith("rng.")},
            train_state=train_state,
            rng={
                name.removeprefix(prefix): t
                for name, t in tensors.items()
                if name.startswith(prefix)
            },
            config=config,
            data_fingerprint=manifest.data_fingerprint,
        )


class _Background:
    """One call in a thread of its own, and how it ended.

    The thread is a daemon: a process that gives up on a stuck disk can still end, and what it
    leaves behind is an unpublished draft.
    """

    def __init__(self, call: Callable[[], None], name: str) -> None:
        self.name = name
        self.start = time.monotonic()
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return self.done

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - raised again where the save was asked for
            self.error = error


def _check_same_model(
    path: Path, saved: Mapping[str, tuple[Any, Any]], engine: EngineState
) -> None:
    """Compare names, shapes and dtypes of what was saved with the live tensors.

    Only the optimizer entries of a parameter may be missing, all of them: no update had reached it.
    What a number format keeps for itself is not looked at: a run may go on in another one.
    """
    live = {name: (tensor.shape, tensor.dtype) for name, tensor in engine.items()}
    live = {name: kind for name, kind in live.items() if not name.startswith("precision.")}
    saved = {
        name: kind for name, kind in saved.items() if not name.startswith(("rng.", "precision."))
    }
    differing = [
        f"{name} is {_describe(saved[name])}, expected {_describe(live[name])}"
        for name in live.keys() & saved.keys()
        if saved[name] != live[name]
    ]
    params = {name.removeprefix("model.") for name in live if name.startswith("model.")}
    reached = {param_of(name, params) for name in saved} | {None}
    missing = {n for n in live.keys() - saved.keys() if param_of(n, params) in reached}
    parts = {
        "missing in the checkpoint": missing,
        "left over in the checkpoint": saved.keys() - live.keys(),
        "different": differing,
    }
    if any(parts.values()):
        told = (f"{what}: {_some(names)}" for what, names in parts.items() if names)
        raise CheckpointError(
            "\n  ".join([f"{path} is a checkpoint of another model or optimizer", *told])
        )


def _describe(kind: tuple[Any, Any]) -> str:
    shape, dtype = kind
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"


def _some(names: Any) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: found a {type(values).__name__}, expected an object")
    return values
