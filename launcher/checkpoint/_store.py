"""Checkpoints of a run in its directory."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import threading
import time
from collections.abc import Callable

from launcher.checkpoint import _manifest
from launcher.checkpoint._checkpoint_dir import CheckpointDir
from launcher.checkpoint._commit import Pending, commit, foreign, invalid_reason
from launcher.checkpoint._manifest import Manifest, Verdict
from launcher.checkpoint._ranks import Ranks
from launcher.checkpoint._restore import restore, rng_prefix
from launcher.checkpoint._state import Staging, State, full_bytes
from launcher.checkpoint._storage import Storage
from launcher.contracts import EngineState, Snapshot, World
from launcher.errors import CheckpointError
from launcher.run_dir import RunDir

_log = logging.getLogger("trainctl.checkpoint")
_AFTER_ERROR_S = 30.0


class DirectoryStore:
    """Store of folders under RUN_DIR/checkpoints; creating one is collective."""

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
        self._run_id = run_dir.id
        self._world = world
        self._keep = keep
        self._asynchronous = asynchronous
        self._timeout_s = timeout_s
        self._storage = storage or Storage()
        self._ranks = Ranks(world.rank, world.size, timeout_s)
        self._directory = CheckpointDir(run_dir, self._storage)
        self._staging = Staging()
        self._writing: _Background | None = None
        self._parent_step: int | None = None
        self._verified: set[int] = set()
        self._ranks.first(self._open)

    def save(self, snapshot: Snapshot) -> None:
        # One save at a time: the buffers are reused, and two would compete for the disk.
        self.wait()
        state = self._state(snapshot)
        num_bytes, plan = full_bytes(state), None
        if self._ranks.size > 1:
            # Planned before copying: what another rank writes needs no copy here. A single rank
            # plans in the background, because importing DCP takes half a second.
            from launcher.checkpoint import _dcp

            plan = _dcp.make_plan(state, self._ranks)
            state = {name: value for name, value in state.items() if name in plan.names}
        pending = Pending(
            run_id=self._run_id,
            step=snapshot.step,
            parent_step=self._parent_step,
            world_size=self._world.size,
            data_fingerprint=snapshot.data_fingerprint,
            config=snapshot.config,
            train_state=json.dumps(snapshot.train_state, indent=2) + "\n",
            state=self._staging.copy(state) if self._asynchronous else state,
            plan=plan,
            num_bytes=num_bytes,
        )
        if self._asynchronous:
            self._writing = _Background(
                lambda: self._commit(pending), f"checkpoint-{snapshot.step}"
            )
        else:
            self._commit(pending)

    def poll(self) -> None:
        # Not collective, so that it costs no message per step. A failed save fails on all ranks,
        # but they may notice it one step apart. That is harmless: the first rank that raises ends
        # the run, and a rank that waits for it in a collective reports a lost peer, which the
        # launcher ranks below.
        if self._writing is not None and self._writing.done:
            self._end(self._writing)

    def wait(self) -> None:
        self._wait(self._timeout_s)

    def _wait(self, seconds: float) -> None:
        if self._writing is None:
            return
        if not self._writing.wait(seconds):
            raise CheckpointError(
                f"{self._directory.folder}: {self._writing.name} is still being written after "
                f"{time.monotonic() - self._writing.start:.0f} s; the disk is stuck or too slow "
                "(checkpoint.timeout_s, checkpoint.every_steps)"
            )
        self._end(self._writing)

    def has_any(self) -> bool:
        self.wait()
        return self._ranks.first(
            lambda: bool(self._directory.steps() or self._directory.quarantined())
        )

    def load(self, live: EngineState) -> Snapshot | None:
        self.wait()
        # A damaged checkpoint is quarantined, and the next is tried. One of another model is an
        # error: falling back to an older one would hide a wrong config.
        refused: list[str] = []
        for step in self._ranks.first(self._directory.steps):
            manifest, reason = self._examine(step, self._ranks)
            if manifest is not None:
                snapshot = restore(self._directory.path(step), manifest, live, self._ranks)
                self._parent_step = step
                return snapshot
            refused.append(f"{self._directory.path(step).name}: {reason}")
        quarantined = self._ranks.first(
            lambda: [path.name for path in self._directory.quarantined()]
        )
        if not refused and not quarantined:
            return None
        raise CheckpointError(
            "\n  ".join(
                [
                    f"{self._directory.folder} holds no valid checkpoint to resume from:",
                    *refused,
                    *(f"{name} was quarantined earlier" for name in quarantined),
                    "restore a good copy of one of them, or start a new run",
                ]
            )
        )

    def close(self) -> None:
        # After an error the run must report it, and not a launcher that waited too long.
        seconds = self._timeout_s if sys.exception() is None else _AFTER_ERROR_S
        self._wait(min(seconds, self._timeout_s))
        self._staging = Staging()

    def _open(self) -> None:
        try:
            self._directory.open()
        except OSError as error:
            raise CheckpointError(
                f"{self._directory.folder} cannot be used for checkpoints: "
                f"{error.strerror or error} ({error.filename}); choose a writable folder with "
                "run_root=DIR"
            ) from error

    def _state(self, snapshot: Snapshot) -> State:
        rng = {
            f"{rng_prefix(self._world.rank)}{name}": tensor for name, tensor in snapshot.rng.items()
        }
        return {**snapshot.engine, **rng}

    def _end(self, writing: _Background) -> None:
        self._writing = None
        if writing.error is not None:
            raise writing.error

    def _commit(self, pending: Pending) -> None:
        start = time.monotonic()
        commit(pending, self._directory, self._storage, self._ranks)
        self._parent_step = pending.step
        if not self._ranks.is_first:
            return
        self._verified.add(pending.step)
        _log.info("saved step %d in %.1f s", pending.step, time.monotonic() - start)
        # After publishing, so that a failed save costs no older checkpoint: the disk must have room
        # for one more than `keep`. A failure to delete is no failure of the save.
        try:
            self._retain(pending.step)
        except OSError as error:
            _log.warning("older checkpoints could not be examined: %s", error)

    def _retain(self, newest: int) -> None:
        """Delete all but the `keep` newest verified checkpoints, including `newest`."""
        # Only verified ones count: with keep=2 and a damaged newer one, two valid ones remain.
        kept = 1
        for step in self._directory.steps():
            if step == newest:
                continue
            if kept < self._keep:
                kept += step in self._verified or self._examine(step, Ranks.alone())[0] is not None
            elif self._is_ours(step):
                self._verified.discard(step)
                self._directory.discard(step)

    def _is_ours(self, step: int) -> bool:
        """Return True if this run wrote a checkpoint; others are never deleted."""
        manifest = _manifest.peek(self._directory.path(step))
        return manifest is not None and manifest.run_id == self._run_id

    def _examine(self, step: int, ranks: Ranks) -> tuple[Manifest | None, str]:
        """Return a valid checkpoint's manifest, or None and the reason; quarantine a damaged one.

        Every rank reads a part of the files, rank 0 decides and renames.
        """
        path = self._directory.path(step)
        manifest, fault = ranks.first(lambda: _manifest.open_checkpoint(path))
        if manifest is None:
            faults = [fault]
        else:
            files = _manifest.share_of(manifest.files, ranks.rank, ranks.size)
            faults = ranks.share(
                lambda: _manifest.check_files(path, files),
                lambda found: list(itertools.chain(*found)),
            )
        return ranks.first(lambda: self._judge(step, Verdict(manifest, faults)))

    def _judge(self, step: int, verdict: Verdict) -> tuple[Manifest | None, str]:
        path = self._directory.path(step)
        reason = invalid_reason(verdict, self._run_id, step)
        if reason is None:
            assert verdict.manifest is not None, "without one it is invalid"  # noqa: S101
            self._verified.add(step)
            if strays := _manifest.strays(path, verdict.manifest):
                _log.warning("%s: unknown files are not read: %s", path, ", ".join(strays))
            return verdict.manifest, ""
        self._verified.discard(step)
        if (
            verdict.manifest is not None
            and not verdict.faults
            and foreign(verdict.manifest, self._run_id)
        ):
            # A valid checkpoint of another run, copied here by the user: it keeps its name.
            _log.warning("%s is not used: %s", path, reason)
        else:
            self._directory.quarantine(step, reason)
        return None, reason


class _Background:
    """A call in its own thread, and its error."""

    def __init__(self, call: Callable[[], None], name: str) -> None:
        self.name = name
        self.start = time.monotonic()
        self.error: BaseException | None = None
        self._call = call
        # A daemon: a process can exit although the disk is stuck, and leaves an unpublished draft.
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
        except BaseException as error:  # noqa: BLE001 - raised again where the save was requested
            self.error = error
