"""Kill ranks of a run at random moments, some of them in the middle of a save."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from launcher.run_dir import RunDir, step_of

_POLL_S = 0.002
_LONGEST_S = 0.2
_IN_SAVE = 0.5


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill.

    Attributes:
        rank: The rank.
        in_save: A checkpoint was being written.
        saved_step: Step of the newest checkpoint at that moment.
    """

    rank: int
    in_save: bool
    saved_step: int


class Killer:
    """Kills a rank of each of several attempts of a run (SIGKILL), in a thread.

    Args:
        run_dir: The run.
        count: Number of kills; number i, from 0, comes after the checkpoint of step (2i + 1) ×
            `every`.
        every: Steps from one checkpoint to the next.
        seed: Seed of ranks and moments.
    """

    def __init__(self, run_dir: RunDir, count: int, every: int, seed: int) -> None:
        self.kills: list[Kill] = []
        self._run_dir, self._count, self._every = run_dir, count, every
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._ended = threading.Event()
        self._killed: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while len(self.kills) < self._count:
            after = (2 * len(self.kills) + 1) * self._every
            if not self._until(lambda: bool(self._ranks())):
                return
            began = time.monotonic()
            if not self._until(lambda after=after: self._saved_step() >= after):  # type: ignore[misc]
                return
            if self._chance.random() < _IN_SAVE:
                if not self._until(self._is_saving):
                    return
            else:
                # Within about the time of these steps: later the run could be at its end.
                passed = time.monotonic() - began
                self._ended.wait(self._chance.uniform(0.0, min(_LONGEST_S, passed / 4)))
            self._kill()

    def _kill(self) -> None:
        # Empty if the attempt has ended otherwise: the next one is killed.
        ranks = self._ranks()
        if not ranks:
            return
        rank = self._chance.randrange(len(ranks))
        self.kills.append(Kill(rank, self._is_saving(), self._saved_step()))
        with suppress(ProcessLookupError):
            os.kill(ranks[rank], signal.SIGKILL)
        self._killed.update(ranks)

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; return False if the run has ended first."""
        while not condition():
            if self._ended.wait(_POLL_S):
                return False
        return True

    def _ranks(self) -> list[int]:
        """Return the processes of an attempt in which none has been killed."""
        try:
            found: list[int] = json.loads(self._run_dir.lock.read_text("utf-8")).get("ranks", [])
        except (OSError, ValueError):
            return []
        return [] if self._killed & set(found) else found

    def _saved_step(self) -> int:
        return max((step_of(path) or 0 for path in self._entries("step-*")), default=0)

    def _is_saving(self) -> bool:
        return bool(self._entries(".tmp-*"))

    def _entries(self, pattern: str) -> list[Path]:
        with suppress(OSError):
            return list(self._run_dir.checkpoints.glob(pattern))
        return []
