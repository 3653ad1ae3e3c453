"""Detect ranks that make no progress, and the rank that the others wait for."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from launcher.errors import Hang
from launcher.launch._heartbeat import Heartbeats
from launcher.launch._outcome import in_collective, log_tail
from launcher.launch._processes import RankProcess, process_state, waits_for_disk
from launcher.launch._signals import DUMP
from launcher.run_dir import RunDir

# Some phases have no known duration: reading data, writing a checkpoint. There a rank that computes
# makes progress, and the ranks that wait for it are not hanging.
_UNBOUNDED = {"build", "save", "end"}
# Share of a core above which a rank is busy: idle threads use less.
_BUSY = 0.02
_DUMP_S = 2.0
_STOPPED = {"T", "t"}
_WORKING = {"R", "D"}
_FRAME = re.compile(r'File "([^"]*)", line (\d+) in (\S+)')


@dataclass(slots=True)
class _Seen:
    count: int = 0
    cpu_s: float = 0.0
    silent_s: float = 0.0


@dataclass(slots=True)
class Watch:
    """Compares the heartbeats of the running ranks every `tick_s` seconds."""

    heartbeats: Heartbeats
    timeout_s: float
    has_others: bool = False
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _looked: float = field(default_factory=time.monotonic)

    @property
    def tick_s(self) -> float:
        return min(1.0, self.timeout_s / 10)

    def silent(self, running: Sequence[RankProcess]) -> bool:
        """Return True if a rank made no progress for too long."""
        now = time.monotonic()
        # Time in which the launcher itself was stopped does not count.
        passed = min(now - self._looked, 2 * self.tick_s)
        if now - self._looked < self.tick_s / 2:
            return False
        self._looked = now
        bounded = {rank.rank: self._look(rank, passed) for rank in running}
        working = any(self._seen[rank].silent_s == 0 for rank in bounded)
        return any(
            self._seen[rank].silent_s >= self.timeout_s and (is_bounded or not working)
            for rank, is_bounded in bounded.items()
        )

    def _look(self, rank: RankProcess, passed: float) -> bool:
        """Update the entry of a rank; return True if the duration of its phase is bounded."""
        seen = self._seen.setdefault(rank.rank, _Seen())
        beat = self.heartbeats.read(rank.rank)
        bounded = beat.phase not in _UNBOUNDED
        cpu_s, busy = seen.cpu_s, False
        if not bounded and (state := process_state(rank.pid)) is not None:
            cpu_s = state[1]
            # A rank that waits for a core or a disk on a busy machine makes progress, too.
            busy = state[0] in _WORKING or cpu_s - seen.cpu_s > _BUSY * passed
            # The main thread waits while a background thread syncs a checkpoint.
            busy = busy or waits_for_disk(rank.pid)
        seen.silent_s = 0.0 if beat.count != seen.count or busy else seen.silent_s + passed
        seen.count, seen.cpu_s = beat.count, cpu_s
        return bounded

    def report(self, run_dir: RunDir, ranks: Sequence[RankProcess]) -> Hang:
        """Make every rank write its stacks to its log, and return the error to raise."""
        places = [_Place(rank, self.heartbeats, run_dir) for rank in ranks]
        for place in places:
            place.ask()
        deadline = time.monotonic() + _DUMP_S
        while not all(place.answered() for place in places) and time.monotonic() < deadline:
            time.sleep(0.05)
        missing = _missing(places, has_others=self.has_others)
        names = ", ".join(str(place.rank.rank) for place in missing)
        who = f"rank{'s' if len(missing) > 1 else ''} {names} {'are' if len(missing) > 1 else 'is'}"
        who = f"{who} missing" if missing else "the missing rank is on another node"
        lines = [f"no progress within launch.timeout_s={self.timeout_s:g} s; {who}"]
        lines += [f"  rank {place.rank.rank}: {place}" for place in places]
        logs = run_dir.log(0).parent / "rank-*.log"
        lines.append(f"stacks: {logs}; raise launch.timeout_s if a step takes longer")
        return Hang("\n".join(lines), [place.rank.rank for place in missing])


class _Place:
    """Step, phase, state and innermost frame of a rank."""

    def __init__(self, rank: RankProcess, heartbeats: Heartbeats, run_dir: RunDir) -> None:
        self.rank = rank
        self.beat = heartbeats.read(rank.rank)
        self.log = run_dir.log(rank.rank)
        state = process_state(rank.pid) if rank.status is None else None
        self.stopped = state is not None and state[0] in _STOPPED
        self._asked_at = self.log.stat().st_size if self.log.exists() else 0
        self._size = self._asked_at
        self._stack = ""

    def ask(self) -> None:
        """Request the stacks."""
        # A stopped process handles no signal: waiting for its answer would be lost time.
        if self.stopped:
            with self.log.open("a", encoding="utf-8") as log:
                log.write("the process is stopped (SIGSTOP): it cannot write its stacks\n")
        else:
            self.rank.send(DUMP)

    def answered(self) -> bool:
        """Return True when the log has the stacks and no longer grows."""
        if self.stopped or self.rank.status is not None:
            return True
        size = self.log.stat().st_size if self.log.exists() else 0
        done = size == self._size > self._asked_at
        self._size = size
        if done and not self._stack:
            # faulthandler writes the main thread last: the part after the last header is its stack.
            self._stack = log_tail(self.log, self._asked_at).rpartition("(most recent call first)")[
                2
            ]
        return done

    @property
    def waits(self) -> bool:
        return in_collective(self._stack)

    @property
    def silent(self) -> bool:
        return self.stopped or self.rank.status is not None or not self._stack

    @override
    def __str__(self) -> str:
        beat = self.beat
        phase = {"build": "before the first step", "end": "after the last step"}.get(beat.phase)
        words = [phase or f"{beat.phase} after step {beat.step}"]
        if self.rank.status is not None:
            return f"ended with status {self.rank.status}"
        if self.stopped:
            words.append("stopped (SIGSTOP)")
        elif frame := _FRAME.search(self._stack):
            file, line, function = frame.groups()
            words.append(f"{'waits in' if self.waits else 'in'} {function} ({file}:{line})")
        else:
            words.append("does not answer")
        return ", ".join(words)


def _missing(places: Sequence[_Place], *, has_others: bool) -> list[_Place]:
    """Return the ranks that the others wait for, by the strongest evidence."""
    # A rank that cannot answer, otherwise one that is not in a collective like the others,
    # otherwise the one that is behind.
    least = min(place.beat.step for place in places)
    signs = (
        [place for place in places if place.silent],
        [place for place in places if not place.waits],
        # All wait in a collective: for a rank of another node, if there are any.
        [] if has_others else [place for place in places if place.beat.step == least],
    )
    return next((found for found in signs if found), [])
