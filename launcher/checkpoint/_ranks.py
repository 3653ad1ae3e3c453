"""Rounds in which the ranks agree on a save or a load: reports to rank 0, answers from it.

An error on one rank is raised on all of them, with the number of the rank, so that no rank waits
for one that has stopped.
"""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from torch import distributed as dist

from launcher.errors import CheckpointError, LostRank

A = TypeVar("A")
B = TypeVar("B")
_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error that one rank reports and all ranks raise.

    Attributes:
        text: What to raise.
        lost: A rank did not answer; no later round can succeed.
    """

    text: str
    lost: bool = False


class Ranks:
    """The ranks of a run, in a process group of their own.

    A background thread runs rounds while the training's collectives continue in the main
    thread. In one group the two would be matched with each other; a gloo group of its own is
    independent and does not wait for NCCL's streams. Messages are sent point to point instead of
    gathered, so that rank 0 knows which rank did not answer.

    Args:
        rank: This rank.
        size: Number of ranks; 1 needs no process group.
        timeout_s: How long rank 0 waits for the other ranks in a round. They wait twice as long for
            its answer, so that rank 0 is the first to give up and names the rank that is missing.
    """

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        self.rank = rank
        self.size = size
        self._timeout_s = timeout_s
        self._lost: str | None = None
        # Freed with the default group: a rank that closes early must not cut off the others.
        self._group = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * timeout_s + _GRACE_S))
            if size > 1
            else None
        )

    @classmethod
    def alone(cls) -> Self:
        """Return the ranks for what rank 0 does without the others."""
        return cls(0, 1, 0.0)

    @property
    def is_first(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def first(self, call: Callable[[], B]) -> B:
        """Call a function on rank 0 and return its result on every rank."""
        return self.share(lambda: None, lambda _: call())

    def share(self, local: Callable[[], A], decide: Callable[[list[A]], B]) -> B:
        """Call `local` on every rank and return on all of them what rank 0 makes of the results."""
        return self.scatter(local, lambda reports: [decide(reports)] * self.size)

    def scatter(self, local: Callable[[], A], decide: Callable[[list[A]], Sequence[B]]) -> B:
        """Call `local` on every rank and return to each its own part of what rank 0 makes of it.

        Args:
            local: Called on every rank.
            decide: Called on rank 0 with the result of every rank, in order; one answer for each.

        Raises:
            CheckpointError: A call failed on any rank.
            LostRank: A rank did not answer in time.
        """
        if self.size == 1:
            return decide([local()])[0]
        if self._lost is not None:
            raise LostRank(self._lost)
        error: BaseException | None = None
        report: object
        try:
            report = local()
        except BaseException as raised:  # noqa: BLE001 - reported to the other ranks, raised below
            error, report = raised, _Failure(f"rank {self.rank}: {_describe(raised)}")
        if self.is_first:
            answer, deciding = self._answer(report, decide)
            error = error or deciding
        else:
            answer = self._ask(report)
        if isinstance(answer, _Failure):
            if answer.lost:
                self._lost = answer.text
            if error is not None and not isinstance(error, CheckpointError):
                raise error
            raise (LostRank if answer.lost else CheckpointError)(answer.text) from error
        result: B = answer
        return result

    def _answer(
        self, report: object, decide: Callable[[list[A]], Sequence[B]]
    ) -> tuple[Any, BaseException | None]:
        """Collect the reports on rank 0, decide, and answer every rank."""
        deadline = time.monotonic() + self._timeout_s
        reports: list[Any] = [report]
        for rank in range(1, self.size):
            try:
                reports.append(self._receive(rank, deadline - time.monotonic()))
            except RuntimeError as lost:
                reports.append(self._lose(rank, lost))
        error: BaseException | None = None
        failure = next((report for report in reports if isinstance(report, _Failure)), None)
        answers: Sequence[Any] = [failure] * self.size
        if failure is None:
            try:
                answers = decide(reports)
            except BaseException as raised:  # noqa: BLE001 - as above
                error, failure = raised, _Failure(_describe(raised))
                answers = [failure] * self.size
        for rank in range(1, self.size):
            try:
                self._send(answers[rank], rank)
            except RuntimeError as lost:
                answers = [failure or self._lose(rank, lost), *answers[1:]]
        return answers[0], error

    def _ask(self, report: object) -> Any:
        try:
            self._send(report, 0)
            return self._receive(0, 2 * self._timeout_s)
        except RuntimeError as error:
            return self._lose(0, error)

    def _lose(self, rank: int, error: RuntimeError) -> _Failure:
        """Give up on a rank. Its messages may still arrive, so no further round is possible."""
        # gloo puts the place in its own source first.
        reason = re.sub(r"^\[[^\]]*\] ", "", str(error)).partition(". ")[0]
        self._lost = (
            f"rank {rank} did not answer rank {self.rank} while checkpoints were being saved or "
            f"loaded: {reason}; see the log of rank {rank} (checkpoint.timeout_s is "
            f"{self._timeout_s:g} s)"
        )
        return _Failure(self._lost, lost=True)

    def _send(self, value: object, rank: int) -> None:
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        dist.send(torch.tensor([data.numel()]), rank, group=self._group)
        dist.send(data, rank, group=self._group)

    def _receive(self, rank: int, timeout_s: float) -> Any:
        # Even after the deadline, what the rank has already sent is taken.
        timeout = timedelta(seconds=max(timeout_s, _GRACE_S))
        size = torch.empty(1, dtype=torch.int64)
        self._wait(size, rank, timeout)
        data = torch.empty(int(size.item()), dtype=torch.uint8)
        self._wait(data, rank, timeout)
        # Only ranks of this run, started by the same launcher, are in the group.
        return pickle.loads(data.numpy().tobytes())  # noqa: S301

    def _wait(self, tensor: torch.Tensor, rank: int, timeout: timedelta) -> None:
        work = dist.irecv(tensor, rank, group=self._group)
        if work is None:
            raise RuntimeError("this process is not in the group")
        work.wait(timeout)


def _describe(error: BaseException) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    return f"{type(error).__name__}: {error}"
