"""Rounds in which the ranks agree on a save or a load: reports to rank 0, answers from it."""

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
    """An error of one rank that all ranks raise; `lost` if a rank did not answer."""

    text: str
    lost: bool = False


class Ranks:
    """Ranks of a run, in their own process group; an error on one of them is raised on all."""

    # A background thread runs rounds while the training's collectives continue in the main thread.
    # In one group the two would be matched with each other. gloo, because it does not wait for
    # NCCL's streams. Messages are sent point to point and not gathered, so that rank 0 knows which
    # rank did not answer.

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        self.rank = rank
        self.size = size
        self._timeout_s = timeout_s
        self._lost: str | None = None
        # Rank 0 waits for timeout_s in a round, the others twice as long for its answer: rank 0
        # gives up first, and names the missing rank. The group is freed with the default group,
        # because a rank that closes early must not disconnect the others.
        self._group = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * timeout_s + _GRACE_S))
            if size > 1
            else None
        )

    @classmethod
    def alone(cls) -> Self:
        """Return a group of one, for what rank 0 does without the others."""
        return cls(0, 1, 0.0)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def first(self, call: Callable[[], B]) -> B:
        """Call a function on rank 0 and return its result on every rank."""
        return self.share(lambda: None, lambda _: call())

    def share(self, local: Callable[[], A], decide: Callable[[list[A]], B]) -> B:
        """Call `local` on every rank and `decide` on rank 0 with all results; return its answer."""
        return self.scatter(local, lambda reports: [decide(reports)] * self.size)

    def scatter(self, local: Callable[[], A], decide: Callable[[list[A]], Sequence[B]]) -> B:
        """Call `local` on every rank, `decide` on rank 0 with all results; return each its answer.

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
            # The rank with the defect raises the original, with its traceback; the others a text.
            if error is not None and not isinstance(error, CheckpointError):
                raise error
            raise (LostRank if answer.lost else CheckpointError)(answer.text) from error
        result: B = answer
        return result

    def _answer(
        self, report: object, decide: Callable[[list[A]], Sequence[B]]
    ) -> tuple[Any, BaseException | None]:
        """Receive the reports on rank 0, decide, and answer every rank."""
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
        """Record that a rank did not answer."""
        # Its late messages would be taken for those of the next round: none is possible any more.
        # gloo's messages start with a position in its source.
        reason = re.sub(r"^\[[^\]]*\] ", "", str(error)).partition(". ")[0]
        self._lost = (
            f"rank {rank} did not answer rank {self.rank} while checkpoints were being saved or "
            f"loaded: {reason}; see the log of rank {rank} (checkpoint.timeout_s is "
            f"{self._timeout_s:g} s)"
        )
        return _Failure(self._lost, lost=True)

    def _send(self, value: object, rank: int) -> None:
        # Not dist.send_object_list, whose counterpart recv_object_list has no timeout.
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        dist.send(torch.tensor([data.numel()]), rank, group=self._group)
        dist.send(data, rank, group=self._group)

    def _receive(self, rank: int, timeout_s: float) -> Any:
        # Never 0: what a rank has already sent is received even after the deadline.
        timeout = timedelta(seconds=max(timeout_s, _GRACE_S))
        size = torch.empty(1, dtype=torch.int64)
        self._wait(size, rank, timeout)
        data = torch.empty(int(size.item()), dtype=torch.uint8)
        self._wait(data, rank, timeout)
        # Pickle is safe here: only ranks of this run are in the group.
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
